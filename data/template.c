#include "data/template.h"

#include <stdlib.h>
#include <string.h>

#include "data/hhr.h"
#include "data/residue.h"

enum { NAME_SIZE = 32 };

static const double MIN_ALIGN_RATIO = 0.1, MAX_SUBSEQUENCE_RATIO = 0.95;

const char *template_verdict_text(TemplateVerdict verdict)
{
    static const char *const TEXT[TEMPLATE_VERDICTS] = {
        [TEMPLATE_ACCEPTED] = "accepted",
        [TEMPLATE_UNKNOWN_CHAIN] = "chain unknown or without release date",
        [TEMPLATE_SAME_ENTRY] = "the entry of the query itself",
        [TEMPLATE_TOO_NEW] = "released less than 60 days before the query",
        [TEMPLATE_TOO_FEW_COLUMNS] = "at most 10 % of the query aligned",
        [TEMPLATE_DUPLICATE] = "a piece of the query longer than 95 % of it",
        [TEMPLATE_TOO_SHORT] = "fewer than 10 residues",
    };
    return verdict >= 0 && verdict < TEMPLATE_VERDICTS ? TEXT[verdict] : "?";
}

bool template_date_days(const char *date, int64_t *days_out)
{
    for (int i = 0; i < 10; ++i) {
        bool dash = i == 4 || i == 7;
        if (dash ? date[i] != '-' : date[i] < '0' || date[i] > '9') return false;
    }
    int64_t year = strtol(date, NULL, 10), month = strtol(date + 5, NULL, 10), day = strtol(date + 8, NULL, 10);
    if (month < 1 || month > 12 || day < 1 || day > 31) return false;
    /* days of the proleptic Gregorian calendar, years counted from March */
    year -= month <= 2;
    int64_t era = year / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    *days_out = era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
    return true;
}

/* The hit's letters without gaps, in the arena. */
static char *without_gaps(const char *row, Arena *arena)
{
    char *out = arena_strdup(arena, row);
    size_t used = 0;
    for (; out && *row; ++row)
        if (*row != '-') out[used++] = *row;
    if (out) out[used] = '\0';
    return out;
}

static TemplateVerdict judge_alignment(const TemplateQuery *query, const TemplateHit *hit, const char *letters)
{
    double length = (double)strlen(query->sequence), found = (double)strlen(letters);
    if ((double)hit->aligned_columns / length <= MIN_ALIGN_RATIO) return TEMPLATE_TOO_FEW_COLUMNS;
    if (strstr(query->sequence, letters) && found / length > MAX_SUBSEQUENCE_RATIO) return TEMPLATE_DUPLICATE;
    return found < TEMPLATE_MIN_RESIDUES ? TEMPLATE_TOO_SHORT : TEMPLATE_ACCEPTED;
}

Status template_judge(const TemplateQuery *query, const TemplateHit *hit, const TemplateSource *source,
                      TemplateVerdict *verdict_out)
{
    char entry[NAME_SIZE], chain[NAME_SIZE], date[11] = "";
    *verdict_out = TEMPLATE_UNKNOWN_CHAIN;
    if (hhr_split_name(hit->name, entry, sizeof entry, chain, sizeof chain) != OK) return OK;
    const char *current = source->current(source->context, entry);
    TRY(source->release_date(source->context, current, chain, date));
    int64_t released, limit;
    if (!template_date_days(date, &released)) return OK;
    *verdict_out = TEMPLATE_SAME_ENTRY;
    if (strcmp(current, query->entry_id) == 0) return OK;
    *verdict_out = TEMPLATE_TOO_NEW;
    if (template_date_days(query->release_date, &limit) && released > limit - TEMPLATE_MAX_DAYS_BEFORE) return OK;
    Arena arena = {0};
    char *letters = without_gaps(hit->hit_sequence, &arena);
    Status status = letters ? OK : status_fail(ERR_MEMORY, "no memory for a hit");
    if (letters) *verdict_out = judge_alignment(query, hit, letters);
    arena_free(&arena);
    return status;
}

typedef struct Ranked {
    double sum_probs;
    int64_t hit;
} Ranked;

/* Largest sum first; equal sums stay in file order. */
static int compare_ranked(const void *a, const void *b)
{
    const Ranked *x = a, *y = b;
    if (x->sum_probs != y->sum_probs) return x->sum_probs > y->sum_probs ? -1 : 1;
    return (x->hit > y->hit) - (x->hit < y->hit);
}

Status template_select(const TemplateQuery *query, const TemplateHits *hits, const TemplateSource *source, Arena *arena,
                       int32_t **order_out, int64_t *count_out)
{
    Ranked *ranked = arena_array(arena, (size_t)hits->count, sizeof *ranked);
    int32_t *order = arena_array(arena, (size_t)hits->count, sizeof *order);
    int64_t count = 0;
    if (!ranked || !order) return status_fail(ERR_MEMORY, "no memory for %lld hits", (long long)hits->count);
    for (int64_t i = 0; i < hits->count; ++i) {
        TemplateVerdict verdict;
        TRY(template_judge(query, &hits->hit[i], source, &verdict));
        if (verdict == TEMPLATE_ACCEPTED) ranked[count++] = (Ranked){hits->hit[i].sum_probs, i};
    }
    if (count) qsort(ranked, (size_t)count, sizeof *ranked, compare_ranked);
    for (int64_t k = 0; k < count; ++k) order[k] = (int32_t)ranked[k].hit;
    *order_out = order;
    *count_out = count;
    return OK;
}

/* First position where `letters` matches with X as wildcard on either side, -1 if none. */
static int64_t find_with_wildcards(const char *sequence, const char *letters)
{
    int64_t length = (int64_t)strlen(sequence), found = (int64_t)strlen(letters);
    for (int64_t at = 0; at + found <= length; ++at) {
        int64_t i = 0;
        while (i < found && (letters[i] == 'X' || sequence[at + i] == letters[i] || sequence[at + i] == 'X')) ++i;
        if (i == found) return at;
    }
    return -1;
}

static const Chain *find_letters(const Structure *structure, const char *chain_id, const char *letters,
                                 int64_t *offset_out)
{
    const Chain *chain = structure_find_chain(structure, chain_id);
    const char *at = chain ? strstr(chain->sequence, letters) : NULL;
    for (int64_t i = 0; !at && i < structure->chain_count; ++i) {
        chain = &structure->chain[i];
        at = strstr(chain->sequence, letters);
    }
    if (at) {
        *offset_out = at - chain->sequence;
        return chain;
    }
    for (int64_t i = 0; i < structure->chain_count; ++i) {
        *offset_out = find_with_wildcards(structure->chain[i].sequence, letters);
        if (*offset_out >= 0) return &structure->chain[i];
    }
    return NULL;
}

/* Mean of all resolved atoms of a chain; false when there are none. Summed in float32, atom by atom, as the reference
 * does: for large chains that is up to 1e-4 Angstrom off, and part of the features. */
static bool centre_of(const Chain *chain, float centre[3])
{
    int64_t atoms = 0;
    centre[0] = centre[1] = centre[2] = 0.0f;
    for (int64_t i = 0; i < chain->length * ATOM37_COUNT; ++i) {
        if (!chain->mask[i]) continue;
        for (int k = 0; k < 3; ++k) centre[k] += chain->positions[i * 3 + k];
        ++atoms;
    }
    for (int k = 0; k < 3 && atoms; ++k) centre[k] /= (float)atoms;
    return atoms > 0;
}

/* The reference drops structures with neighbouring CA more than 150 Angstrom apart. */
static bool has_broken_chain(const Chain *chain)
{
    const double limit = 150.0;
    for (int64_t i = 1; i < chain->length; ++i) {
        int64_t here = i * ATOM37_COUNT + 1, before = here - ATOM37_COUNT;
        if (!chain->mask[here] || !chain->mask[before]) continue;
        double square = 0.0;
        for (int k = 0; k < 3; ++k) {
            double d = (double)chain->positions[here * 3 + k] - chain->positions[before * 3 + k];
            square += d * d;
        }
        if (square > limit * limit) return true;
    }
    return false;
}

static int32_t smallest_index(const int32_t *indices, int64_t count)
{
    int32_t smallest = INT32_MAX;
    for (int64_t i = 0; i < count; ++i)
        if (indices[i] >= 0 && indices[i] < smallest) smallest = indices[i];
    return smallest;
}

/* Where the pieces of one hit go. */
typedef struct Placement {
    const Chain *chain;
    int64_t chain_offset, query_offset;
    const char *letters; /* of the hit, without gaps */
} Placement;

static int8_t letter_type(char letter)
{
    const ResidueTables *tables = residue_tables();
    uint8_t id = tables->letter_to_hhblits[(unsigned char)letter];
    return id < HHBLITS_IDS ? (int8_t)tables->hhblits_to_model[id] : RESTYPE_UNKNOWN;
}

/* Walks the aligned pairs of a hit: residue of the template, column of the query, letter. */
typedef struct PairWalk {
    const TemplateHit *hit;
    const Placement *placement;
    int64_t columns, first_query, first_hit, letters, at;
    int64_t residue, column, letter;
} PairWalk;

static PairWalk pairs_of(const TemplateHit *hit, const Placement *placement, int64_t columns)
{
    return (PairWalk){.hit = hit,
                      .placement = placement,
                      .columns = columns,
                      .first_query = smallest_index(hit->query_indices, hit->length),
                      .first_hit = smallest_index(hit->hit_indices, hit->length),
                      .letters = (int64_t)strlen(placement->letters)};
}

static bool next_pair(PairWalk *walk)
{
    while (walk->at < walk->hit->length) {
        int64_t c = walk->at++;
        if (walk->hit->query_indices[c] < 0 || walk->hit->hit_indices[c] < 0) continue;
        walk->letter = walk->hit->hit_indices[c] - walk->first_hit;
        walk->column = walk->hit->query_indices[c] - walk->first_query + walk->placement->query_offset;
        walk->residue = walk->letter + walk->placement->chain_offset;
        if (walk->letter < walk->letters && walk->column < walk->columns &&
            walk->residue < walk->placement->chain->length)
            return true;
    }
    return false;
}

static int64_t count_atoms(const TemplateHit *hit, const Placement *p, int64_t columns)
{
    PairWalk walk = pairs_of(hit, p, columns);
    int64_t atoms = 0;
    while (next_pair(&walk))
        for (int64_t a = 0; a < ATOM37_COUNT; ++a) atoms += p->chain->mask[walk.residue * ATOM37_COUNT + a] != 0;
    return atoms;
}

/* Copies the aligned residues into template row `row`. */
static void place(const TemplateHit *hit, const Placement *p, int64_t row, TemplateFeatures *f)
{
    PairWalk walk = pairs_of(hit, p, f->columns);
    float centre[3];
    centre_of(p->chain, centre);
    while (next_pair(&walk)) {
        int64_t to = (row * f->columns + walk.column) * ATOM37_COUNT, from = walk.residue * ATOM37_COUNT;
        f->aatype[row * f->columns + walk.column] = letter_type(p->letters[walk.letter]);
        for (int64_t a = 0; a < ATOM37_COUNT; ++a) {
            f->mask[to + a] = p->chain->mask[from + a];
            if (!f->mask[to + a]) continue;
            for (int k = 0; k < 3; ++k)
                f->positions[(to + a) * 3 + k] = p->chain->positions[(from + a) * 3 + k] - centre[k];
        }
    }
}

/* A remark about a hit that is left out. */
static void leave_out(const DataLog *log, const TemplateQuery *query, const TemplateHit *hit, const char *why)
{
    data_warn(log, query->name, 0, "template hit %lld (%s) left out: %s", (long long)hit->index, hit->name, why);
}

/* The chain and offsets of a hit; NULL chain and a reason when it cannot be used. */
static Status locate(const TemplateQuery *query, const TemplateHit *hit, const TemplateSource *source, Arena *arena,
                     Placement *placement_out, const char **why_out)
{
    char entry[NAME_SIZE], chain[NAME_SIZE];
    *placement_out = (Placement){0};
    TRY(hhr_split_name(hit->name, entry, sizeof entry, chain, sizeof chain));
    char *letters = without_gaps(hit->hit_sequence, arena), *query_letters = without_gaps(hit->query, arena);
    if (!letters || !query_letters) return status_fail(ERR_MEMORY, "%s: no memory for a template hit", query->name);
    const char *at = strstr(query->sequence, query_letters);
    *why_out = "its query row is not part of the chain";
    if (!at || !*letters) return OK;
    const Structure *structure = NULL;
    Status status =
        source->structure(source->context, source->current(source->context, entry), chain, arena, &structure);
    if (status == ERR_MEMORY) return status;
    *why_out = status_text();
    if (status != OK) return OK;
    placement_out->letters = letters;
    placement_out->query_offset = at - query->sequence;
    const Chain *found = find_letters(structure, chain, letters, &placement_out->chain_offset);
    float centre[3];
    *why_out = "its sequence is not in the structure";
    if (!found) return OK;
    *why_out = "the chain has no atoms, or neighbouring CA more than 150 Angstrom apart";
    if (!centre_of(found, centre) || has_broken_chain(found)) return OK;
    placement_out->chain = found;
    *why_out = "fewer than 5 of its atoms are resolved";
    if (count_atoms(hit, placement_out, (int64_t)strlen(query->sequence)) < TEMPLATE_MIN_ATOMS)
        placement_out->chain = NULL;
    return OK;
}

Status template_locate(const TemplateQuery *query, const TemplateHit *hit, const TemplateSource *source, Arena *arena,
                       const Chain **chain_out, const char **why_out)
{
    Placement placement;
    TRY(locate(query, hit, source, arena, &placement, why_out));
    *chain_out = placement.chain;
    return OK;
}

static Status allocate(int64_t most, int64_t columns, Arena *arena, TemplateFeatures *f)
{
    size_t residues;
    if (__builtin_mul_overflow((size_t)most, (size_t)columns, &residues) || residues > SIZE_MAX / 1024)
        return status_fail(ERR_MEMORY, "templates: sizes overflow");
    *f = (TemplateFeatures){.columns = columns};
    f->aatype = arena_array(arena, residues, sizeof *f->aatype);
    f->positions = arena_array(arena, residues, ATOM37_COUNT * 3 * sizeof *f->positions);
    f->mask = arena_array(arena, residues, ATOM37_COUNT * sizeof *f->mask);
    f->sum_probs = arena_array(arena, (size_t)most, sizeof *f->sum_probs);
    if (!f->aatype || !f->positions || !f->mask || !f->sum_probs)
        return status_fail(ERR_MEMORY, "no memory for %lld templates of %lld residues", (long long)most,
                           (long long)columns);
    return OK;
}

static void clear_row(TemplateFeatures *f, int64_t row)
{
    size_t atoms = (size_t)f->columns * ATOM37_COUNT;
    memset(f->aatype + row * f->columns, RESTYPE_GAP, (size_t)f->columns);
    memset(f->positions + (size_t)row * atoms * 3, 0, atoms * 3 * sizeof *f->positions);
    memset(f->mask + (size_t)row * atoms, 0, atoms);
}

Status template_build(const TemplateQuery *query, const TemplateHits *hits, const int32_t *order, int64_t count,
                      int64_t most, const TemplateSource *source, const DataLog *log, Arena *arena,
                      TemplateFeatures *features_out)
{
    TemplateFeatures f;
    if (most > count) most = count;
    TRY(allocate(most, (int64_t)strlen(query->sequence), arena, &f));
    for (int64_t i = 0; i < count && f.count < most; ++i) {
        const TemplateHit *hit = &hits->hit[order[i]];
        Arena scratch = {0}; /* the parsed structure is needed for this hit only */
        Placement placement;
        const char *why;
        Status status = locate(query, hit, source, &scratch, &placement, &why);
        if (status == OK && !placement.chain) {
            leave_out(log, query, hit, why);
        } else if (status == OK) {
            clear_row(&f, f.count);
            f.sum_probs[f.count] = (float)hit->sum_probs;
            place(hit, &placement, f.count++, &f);
        }
        arena_free(&scratch);
        if (status != OK) return status;
    }
    *features_out = f;
    return OK;
}

Status template_features(const TemplateQuery *query, const TemplateHits *hits, bool selected, bool shuffle,
                         const Draws *draws, int64_t most, const TemplateSource *source, const DataLog *log,
                         Arena *arena, TemplateFeatures *features_out)
{
    int32_t *order = NULL, drawn[TEMPLATE_SHUFFLED];
    int64_t count = hits->count;
    if (selected) {
        order = arena_array(arena, (size_t)count, sizeof *order);
        if (!order) return status_fail(ERR_MEMORY, "no memory for %lld hits", (long long)count);
        for (int64_t k = 0; k < count; ++k) order[k] = (int32_t)k;
    } else {
        TRY(template_select(query, hits, source, arena, &order, &count));
    }
    int64_t best = count < TEMPLATE_SHUFFLED ? count : TEMPLATE_SHUFFLED;
    for (int64_t k = 0; k < best; ++k) drawn[k] = (int32_t)k;
    if (shuffle && count > 0) TRY(draws_permutation(draws, DRAW_TEMPLATE_HIT_SHUFFLE, 0, best, drawn));
    int32_t *shuffled = arena_array(arena, (size_t)count, sizeof *shuffled);
    if (!shuffled) return status_fail(ERR_MEMORY, "no memory for %lld hits", (long long)count);
    for (int64_t k = 0; k < count; ++k) shuffled[k] = order[k < best ? drawn[k] : k];
    return template_build(query, hits, shuffled, count, most, source, log, arena, features_out);
}
