/* templates/: prefilter of hits, and template features without the shuffle. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset.h"
#include "data/hhr.h"
#include "data/residue.h"
#include "tests/data_golden_numbers.h"

static const double TOLERANCE = 1e-5;
enum { MOST_TEMPLATES = 4 };

/* One query with its hits. */
typedef struct Query {
    Golden *golden;
    Arena *arena;
    const TemplateSource *source;
    TemplateQuery query;
    TemplateHits hits;
} Query;

static Status read_hits(const char *path, Arena *arena, TemplateHits *hits_out)
{
    Text text = {0};
    TRY(text_read(path, &text));
    Status status = hhr_parse(&text, NULL, arena, hits_out);
    text_close(&text);
    return status;
}

/* The hhr file of a query: beside the golden (realign_*), in any layout of the input folder, or in extra/. */
static const char *find_hits(Golden *golden, const char *name, Arena *arena)
{
    const char *candidates[] = {golden_path(arena, golden->golden, "templates/%s.hhr", name),
                                golden_path(arena, golden->real, "pdb/%s/hhr/pdb70_hits.hhr", name),
                                golden_path(arena, golden->real, "alignments/%s/pdb70_hits.hhr", name),
                                golden_path(arena, golden->real, "extra/%s/pdb70_hits.hhr", name)};
    for (size_t i = 0; i < sizeof candidates / sizeof candidates[0]; ++i)
        if (golden_exists(candidates[i])) return candidates[i];
    return NULL;
}

/* Release date in prefilter.csv; "realign_4zey_A" has that of 4zey_A. */
static const char *date_of(const GoldenTable *prefilter, const char *name)
{
    for (int64_t row = 0; row < prefilter->rows; ++row)
        if (strcmp(golden_cell(prefilter, row, "query"), name) == 0)
            return golden_cell(prefilter, row, "query_release_date");
    return "";
}

static bool open_query(Query *q, const char *name, const char *sequence, const char *date)
{
    char entry[32] = "", chain[32];
    const char *path = find_hits(q->golden, name, q->arena);
    if (!path) {
        golden_skip(q->golden, name, "no hhr file in the input folder");
        return false;
    }
    if (hhr_split_name(name, entry, sizeof entry, chain, sizeof chain) != OK) entry[0] = '\0';
    char *own = arena_strdup(q->arena, entry);
    q->query = (TemplateQuery){.name = name, .entry_id = own ? own : "", .sequence = sequence, .release_date = date};
    return golden_ok(q->golden, read_hits(path, q->arena, &q->hits), name);
}

/* The reference's reasons begin with these words. */
static bool same_reason(const char *reason, TemplateVerdict verdict)
{
    static const char *const BEGIN[TEMPLATE_VERDICTS] = {
        [TEMPLATE_ACCEPTED] = "",
        [TEMPLATE_UNKNOWN_CHAIN] = "not in template_pdb_chain_ids",
        [TEMPLATE_SAME_ENTRY] = "template == query",
        [TEMPLATE_TOO_NEW] = "template_release_date",
        [TEMPLATE_TOO_FEW_COLUMNS] = "align_ratio",
        [TEMPLATE_DUPLICATE] = "is_duplicate",
        [TEMPLATE_TOO_SHORT] = "len",
    };
    for (int i = 1; i < TEMPLATE_VERDICTS; ++i) /* a reason that we know must be ours */
        if (strncmp(reason, BEGIN[i], strlen(BEGIN[i])) == 0) return verdict == (TemplateVerdict)i;
    return true;
}

static void check_prefilter_row(const Query *q, const GoldenTable *table, int64_t row)
{
    int64_t index = strtoll(golden_cell(table, row, "index"), NULL, 10);
    char label[96];
    snprintf(label, sizeof label, "prefilter of hit %lld of %s", (long long)index, q->query.name);
    for (int64_t i = 0; i < q->hits.count; ++i) {
        if (q->hits.hit[i].index != index) continue;
        TemplateVerdict verdict;
        if (!golden_ok(q->golden, template_judge(&q->query, &q->hits.hit[i], q->source, &verdict), label)) return;
        bool accepted = strcmp(golden_cell(table, row, "accepted"), "1") == 0;
        const char *reason = golden_cell(table, row, "reason");
        golden_check(q->golden, accepted == (verdict == TEMPLATE_ACCEPTED) && same_reason(reason, verdict), label,
                     "%s (%s)", template_verdict_text(verdict), *reason ? reason : "accepted");
        return;
    }
    golden_check(q->golden, false, label, "no such hit in the hhr file");
}

/* Rows of one query follow each other; its sequence is in the golden features of the same name. */
static void check_prefilter(Golden *golden, const GoldenTable *table, const TemplateSource *source)
{
    for (int64_t first = 0, end; first < table->rows; first = end) {
        const char *name = golden_cell(table, first, "query");
        for (end = first; end < table->rows && strcmp(golden_cell(table, end, "query"), name) == 0; ++end) {
        }
        Arena arena = {0};
        StFile *file = NULL;
        char *path = golden_path(&arena, golden->golden, "templates/%s.safetensors", name);
        Query q = {.golden = golden, .arena = &arena, .source = source};
        if (golden_ok(golden, st_open(path, &file), path)) {
            const char *sequence = st_metadata(file, "query_sequence");
            if (sequence && open_query(&q, name, sequence, golden_cell(table, first, "query_release_date")))
                for (int64_t row = first; row < end; ++row) check_prefilter_row(&q, table, row);
        }
        st_close(&file);
        arena_free(&arena);
    }
}

static void match_templates(const Query *q, const StFile *file, const TemplateFeatures *ours)
{
    Golden *golden = q->golden;
    int64_t count;
    const int64_t *aatype = golden_i64(golden, file, "template_aatype_hhblits", q->arena, &count);
    const int64_t *mask = golden_i64(golden, file, "template_all_atom_mask", q->arena, NULL);
    const float *positions = golden_f32(golden, file, "template_all_atom_positions", q->arena, NULL);
    const float *sums = golden_f32(golden, file, "template_sum_probs", q->arena, NULL);
    int64_t residues = ours->count * ours->columns, atoms = residues * ATOM37_COUNT, wrong = 0;
    if (!aatype || !mask || !positions || !sums) return;
    golden_check(golden, count == residues, q->query.name, "%lld templates", (long long)ours->count);
    if (count != residues) return;
    for (int64_t i = 0; i < residues; ++i)
        wrong += aatype[i] < 0 || aatype[i] >= HHBLITS_IDS ||
                 residue_tables()->hhblits_to_model[aatype[i]] != ours->aatype[i];
    for (int64_t i = 0; i < atoms; ++i) wrong += mask[i] != ours->mask[i];
    golden_check(golden, wrong == 0, q->query.name, "template_aatype and mask: %lld of %lld differ", (long long)wrong,
                 (long long)(residues + atoms));
    char label[96];
    snprintf(label, sizeof label, "%s template_all_atom_positions", q->query.name);
    golden_match_f32(golden, label, ours->positions, positions, atoms * 3, TOLERANCE, NULL, 1);
    snprintf(label, sizeof label, "%s template_sum_probs", q->query.name);
    golden_match_f32(golden, label, ours->sum_probs, sums, ours->count, TOLERANCE, NULL, 1);
}

static void note_missing(void *context, const char *file, long line, const char *text)
{
    (void)file;
    (void)line;
    if (strstr(text, "its sequence is not in the structure")) ++*(int *)context;
}

/* The reference aligns again here; we leave the hit out and say so. */
static void check_realign(const Query *q, const StFile *file)
{
    const char *names = st_metadata(file, "template_domain_names");
    int missing = 0;
    DataLog log = {note_missing, &missing};
    for (int32_t i = 0; names && i < q->hits.count; ++i) {
        char entry[32], chain[32], name[68];
        if (hhr_split_name(q->hits.hit[i].name, entry, sizeof entry, chain, sizeof chain) != OK) continue;
        snprintf(name, sizeof name, "\"%s_%s\"", entry, chain);
        if (!strstr(names, name)) continue;
        TemplateFeatures ours;
        Status status = template_build(&q->query, &q->hits, &i, 1, 1, q->source, &log, q->arena, &ours);
        if (!golden_ok(q->golden, status, q->query.name)) return;
        golden_check(q->golden, ours.count == 0 && missing == 1, q->query.name,
                     "hit %lld is not in its structure: left out with a remark (no kalign)",
                     (long long)q->hits.hit[i].index);
        return;
    }
    golden_check(q->golden, false, q->query.name, "no hit of the golden's name");
}

static void check_features(Golden *golden, const char *path, const GoldenTable *prefilter, const TemplateSource *source)
{
    static const char REALIGN[] = "realign_";
    Arena arena = {0};
    StFile *file = NULL;
    const char *name = golden_stem(path, ".safetensors", &arena);
    bool realign = strncmp(name, REALIGN, sizeof REALIGN - 1) == 0;
    Query q = {.golden = golden, .arena = &arena, .source = source};
    const char *date = date_of(prefilter, realign ? name + sizeof REALIGN - 1 : name);
    if (golden_ok(golden, st_open(path, &file), path)) {
        const char *sequence = st_metadata(file, "query_sequence");
        TemplateFeatures ours;
        Draws draws = {0};
        if (sequence && open_query(&q, name, sequence, date)) {
            if (realign)
                check_realign(&q, file);
            else if (golden_ok(golden,
                               template_features(&q.query, &q.hits, false, false, &draws, MOST_TEMPLATES, source, NULL,
                                                 &arena, &ours),
                               name))
                match_templates(&q, file, &ours);
        }
    }
    st_close(&file);
    arena_free(&arena);
}

void golden_templates(Golden *golden)
{
    Arena arena = {0};
    GoldenTable prefilter;
    char **paths, *folder = golden_path(&arena, golden->golden, "templates");
    char *csv = golden_path(&arena, golden->golden, "templates/prefilter.csv");
    char *obsolete = golden_path(&arena, golden->real, "obsolete.dat");
    int64_t count = 0;
    Dataset *dataset = NULL;
    ArchivePaths archive = {.mmcif = golden_path(&arena, golden->real, "mmcif"),
                            .obsolete = golden_exists(obsolete) ? obsolete : NULL};
    if (!golden_exists(csv)) {
        golden_skip(golden, "prefilter.csv", "not in the golden folder");
    } else if (golden_table_read(golden, csv, &arena, &prefilter) &&
               golden_ok(golden, dataset_open_archive(&archive, NULL, 0, NULL, &dataset), "input folder")) {
        const TemplateSource *source = &dataset_source(dataset)->templates;
        check_prefilter(golden, &prefilter, source);
        if (golden_ok(golden, golden_list(folder, "", ".safetensors", &arena, &paths, &count), folder))
            for (int64_t i = 0; i < count; ++i) check_features(golden, paths[i], &prefilter, source);
    }
    dataset_close(&dataset);
    arena_free(&arena);
}
