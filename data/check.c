#include "data/check.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/alignment.h"
#include "data/folder.h"
#include "data/hhr.h"
#include "data/mmcif.h"
#include "data/names.h"
#include "data/pack.h"
#include "engine/safetensors.h"

/* --- kinds ------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *ending, *part; /* how the name ends (perhaps with .gz), and what it contains */
    DataKind kind;
    bool gz;
} patterns[] = {
    {".cif", "", DATA_MMCIF, true},
    {".a3m", "", DATA_A3M, true},
    {".sto", "", DATA_STOCKHOLM, true},
    {".hhr", "", DATA_HHR, true},
    {".index", "", DATA_INDEX, false},
    {".safetensors", "", DATA_SAFETENSORS, false},
    {".pack", "", DATA_PACK, false},
    {".txt", "duplicate", DATA_DUPLICATES, false},
    {".txt", "cluster", DATA_CLUSTERS, false},
    {".dat", "obsolete", DATA_OBSOLETE, false},
    {".json", "mmcif", DATA_MMCIF_CACHE, false},
    {".json", "chain", DATA_CHAIN_DATA_CACHE, false},
};

DataKind data_kind_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t length = strlen(name);
    bool gz = length > 3 && strcmp(name + length - 3, ".gz") == 0;
    if (gz) length -= 3;
    if (strncmp(name, "hmm_output", strlen("hmm_output")) == 0) return DATA_OTHER; /* hits of hmmsearch: not used */
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        size_t ending = strlen(patterns[i].ending);
        if (length > ending && memcmp(name + length - ending, patterns[i].ending, ending) == 0 &&
            strstr(name, patterns[i].part) && (!gz || patterns[i].gz))
            return patterns[i].kind;
    }
    return DATA_OTHER;
}

const char *data_kind_name(DataKind kind)
{
    static const char *const names[DATA_KINDS] = {
        [DATA_OTHER] = "other",
        [DATA_MMCIF] = "mmCIF",
        [DATA_A3M] = "a3m",
        [DATA_STOCKHOLM] = "Stockholm",
        [DATA_HHR] = "hhr",
        [DATA_INDEX] = "index",
        [DATA_DUPLICATES] = "duplicates",
        [DATA_CLUSTERS] = "clusters",
        [DATA_OBSOLETE] = "obsolete",
        [DATA_CHAIN_DATA_CACHE] = "chain_data_cache",
        [DATA_MMCIF_CACHE] = "mmcif_cache",
        [DATA_SAFETENSORS] = "safetensors",
        [DATA_PACK] = "pack",
    };
    return names[kind];
}

/* --- one file --------------------------------------------------------------------------------------------------- */

typedef struct Checker {
    const DataCheckOptions *options;
    DataCheckCounts *counts;
    DataLog log;      /* counts and reports remarks */
    Archive *archive; /* of options->mmcif; NULL without */
    Arena folder_arena;
    NameMap folders; /* read already, by device and number: links may lead back */
    Arena chain_arena;
    char chain[64]; /* the chain whose sequence is known */
    const char *sequence;
} Checker;

static void tell(const Checker *checker, bool error, const char *text)
{
    if (checker->options->report) checker->options->report(checker->options->context, error, text);
}

static void remark(void *context, const char *file, long line, const char *text)
{
    Checker *checker = context;
    char whole[1024];
    if (line > 0)
        snprintf(whole, sizeof whole, "%.400s:%ld: %.500s", file, line, text);
    else
        snprintf(whole, sizeof whole, "%.400s: %.500s", file, text);
    checker->counts->remarks++;
    tell(checker, false, whole);
}

static Status check_mmcif(Checker *checker, const Text *text, Arena *arena)
{
    Structure *structure = NULL;
    TRY(mmcif_parse(text, &checker->log, arena, &structure));
    checker->counts->protein_chains += structure->chain_count;
    for (int64_t i = 0; i < structure->chain_count; i++) checker->counts->residues += structure->chain[i].length;
    if (structure->chain_count == 0) remark(checker, text->name, 0, "no protein chain");
    return OK;
}

static Status check_alignment(Checker *checker, const Text *text, DataKind kind, const char *sequence, Arena *arena)
{
    Msa msa = {0};
    if (kind == DATA_A3M)
        TRY(alignment_parse_a3m(text, &checker->log, arena, &msa));
    else
        TRY(alignment_parse_stockholm(text, &checker->log, arena, &msa));
    checker->counts->alignment_rows += msa.rows;
    return sequence ? alignment_check_query(&msa, text->name, checker->chain, sequence) : OK;
}

static Status check_hits(Checker *checker, const Text *text, Arena *arena)
{
    TemplateHits hits = {0};
    TRY(hhr_parse(text, &checker->log, arena, &hits));
    checker->counts->hits += hits.count;
    return OK;
}

static Status check_text(Checker *checker, const Text *text, DataKind kind, const char *sequence)
{
    Arena arena = {0};
    Status status = OK;
    checker->counts->bytes += (int64_t)text->size;
    if (kind == DATA_MMCIF)
        status = check_mmcif(checker, text, &arena);
    else if (kind == DATA_HHR)
        status = check_hits(checker, text, &arena);
    else if (kind == DATA_A3M || kind == DATA_STOCKHOLM)
        status = check_alignment(checker, text, kind, sequence, &arena);
    arena_free(&arena);
    return status;
}

static void count_error(Checker *checker)
{
    checker->counts->errors++;
    tell(checker, true, status_text());
}

/* The sequence of ENTRY_CHAIN from the structures; NULL when there is none. */
static const char *known_sequence(Checker *checker, const char *chain)
{
    if (strcmp(checker->chain, chain) == 0) return checker->sequence;
    char entry[64];
    const char *bar = strchr(chain, '_');
    arena_free(&checker->chain_arena);
    checker->sequence = NULL;
    snprintf(checker->chain, sizeof checker->chain, "%s", chain);
    if (!checker->archive || !bar || (size_t)(bar - chain) >= sizeof entry) return NULL;
    snprintf(entry, sizeof entry, "%.*s", (int)(bar - chain), chain);
    char *path = NULL;
    Structure *structure;
    if (archive_structure_path(checker->archive, entry, &checker->chain_arena, &path) != OK || !path) return NULL;
    /* what is wrong with the structure itself is told where it is checked */
    if (mmcif_read_header(path, NULL, &checker->chain_arena, &structure) != OK) return NULL;
    const Chain *found = structure_find_chain(structure, bar + 1);
    return checker->sequence = found ? found->sequence : NULL;
}

/* Everything in the databases of an index; each bad file is reported, the index itself is whole or not. */
static Status check_index(Checker *checker, const char *path)
{
    Archive *archive = NULL;
    Arena arena = {0};
    char **chains;
    int64_t count = 0;
    TRY(archive_open(&(ArchivePaths){.alignment_index = path, .alignment_db = checker->options->alignment_db},
                     &checker->log, &archive));
    Status status = archive_list_chains(archive, &arena, &chains, &count);
    for (int64_t i = 0; status == OK && i < count; i++) {
        Arena scratch = {0};
        ArchiveFile *files;
        int64_t file_count;
        status = archive_chain_files(archive, chains[i], &scratch, &files, &file_count);
        for (int64_t f = 0; status == OK && f < file_count; f++) {
            Text text = {0};
            Status one = archive_file_read(&files[f], chains[i], &text);
            if (one == OK)
                one = check_text(checker, &text, data_kind_of(files[f].name), known_sequence(checker, chains[i]));
            if (one != OK) count_error(checker);
            text_close(&text);
        }
        arena_free(&scratch);
    }
    arena_free(&arena);
    archive_close(&archive);
    return status;
}

static Status check_list(Checker *checker, const char *path, DataKind kind)
{
    Archive *archive = NULL;
    ArchivePaths paths = {0};
    if (kind == DATA_DUPLICATES) paths.duplicates = path;
    if (kind == DATA_CLUSTERS) paths.clusters = path;
    if (kind == DATA_OBSOLETE) paths.obsolete = path;
    if (kind == DATA_CHAIN_DATA_CACHE) paths.chain_data_cache = path;
    if (kind == DATA_MMCIF_CACHE) paths.mmcif_cache = path;
    TRY(archive_open(&paths, &checker->log, &archive));
    archive_close(&archive);
    return OK;
}

static void damaged_record(void *context, const char *file, long line, const char *text)
{
    Checker *checker = context;
    (void)file; /* the text names it */
    (void)line;
    checker->counts->errors++;
    tell(checker, true, text);
}

static Status check_pack(Checker *checker, const char *path)
{
    PackReport report;
    int64_t damaged = 0;
    const DataLog log = {damaged_record, checker};
    return pack_verify(path, &log, &report, &damaged);
}

static Status check_kind(Checker *checker, const char *path, DataKind kind, const char *sequence)
{
    Text text = {0};
    StFile *tensors = NULL;
    switch (kind) {
    case DATA_MMCIF:
    case DATA_A3M:
    case DATA_STOCKHOLM:
    case DATA_HHR: {
        Status status = text_read(path, &text);
        if (status == OK) status = check_text(checker, &text, kind, sequence);
        text_close(&text);
        return status;
    }
    case DATA_INDEX:
        return check_index(checker, path);
    case DATA_SAFETENSORS: {
        TRY(st_open(path, &tensors));
        Status status = st_verify(tensors);
        st_close(&tensors);
        return status;
    }
    case DATA_PACK:
        return check_pack(checker, path);
    case DATA_DUPLICATES:
    case DATA_CLUSTERS:
    case DATA_OBSOLETE:
    case DATA_CHAIN_DATA_CACHE:
    case DATA_MMCIF_CACHE:
        return check_list(checker, path, kind);
    case DATA_OTHER:
    case DATA_KINDS:
        break;
    }
    return OK;
}

static Status check_one(Checker *checker, const char *path, DataKind kind, const char *sequence)
{
    checker->counts->files[kind]++;
    Status status = check_kind(checker, path, kind, sequence);
    if (status != OK) count_error(checker);
    return status;
}

/* --- folders ---------------------------------------------------------------------------------------------------- */

/* .../2q2k_A/a3m/x.a3m and .../2q2k_A/x.a3m belong to 2q2k_A; NULL when no folder is named like a chain. */
static const char *sequence_for(Checker *checker, const char *path)
{
    if (!checker->archive) return NULL;
    char copy[4096];
    if (strlen(path) >= sizeof copy) return NULL;
    strcpy(copy, path);
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(copy, '/');
        if (!slash) break;
        *slash = '\0';
        const char *before = strrchr(copy, '/'), *name = before ? before + 1 : copy;
        if (strchr(name, '_') && known_sequence(checker, name)) return checker->sequence;
    }
    return checker->options->chain ? known_sequence(checker, checker->options->chain) : NULL;
}

/* *seen_out: this folder was read already under another name. */
static Status mark_folder(Checker *checker, const char *path, bool *seen_out)
{
    struct stat info;
    *seen_out = false;
    if (stat(path, &info) != 0) return OK; /* told when it is opened */
    int64_t count = (int64_t)checker->folders.count, number = count;
    char *key = arena_printf(&checker->folder_arena, "%llu:%llu", (unsigned long long)info.st_dev,
                             (unsigned long long)info.st_ino);
    if (!key) return status_fail(ERR_MEMORY, "out of memory");
    TRY(names_add(&checker->folders, key, count, &number));
    *seen_out = number != count;
    return OK;
}

static Status walk(Checker *checker, const char *path, bool asked_for);

static Status walk_folder(Checker *checker, const char *path)
{
    FolderList list;
    Arena arena = {0};
    bool seen;
    TRY(mark_folder(checker, path, &seen));
    if (seen) {
        remark(checker, path, 0, "the same folder as one before (a link): not read again");
        return OK;
    }
    Status status = folder_list(path, &arena, &list);
    for (int64_t i = 0; status == OK && i < list.count; i++) {
        const char *inner = arena_printf(&arena, "%s/%s", path, list.name[i]);
        if (!inner)
            status = status_fail(ERR_MEMORY, "out of memory");
        else if (walk(checker, inner, false) != OK)
            count_error(checker);
    }
    arena_free(&arena);
    return status;
}

static Status walk(Checker *checker, const char *path, bool asked_for)
{
    if (folder_is(path)) return walk_folder(checker, path);
    DataKind kind = data_kind_of(path);
    bool alignment = kind == DATA_A3M || kind == DATA_STOCKHOLM;
    if (asked_for && kind == DATA_OTHER)
        return status_fail_at(ERR_INPUT, path, 0,
                              "the name tells no kind, expected one that ends in .cif, .a3m, .sto, .hhr, .index, "
                              ".pack, .safetensors, or as in 'data check --help'");
    check_one(checker, path, kind, alignment ? sequence_for(checker, path) : NULL);
    return OK;
}

static Status start(Checker *checker, const DataCheckOptions *options, DataCheckCounts *counts)
{
    *checker = (Checker){.options = options, .counts = counts};
    checker->log = (DataLog){remark, checker};
    checker->folders.arena = &checker->folder_arena;
    return options->mmcif ? archive_open(&(ArchivePaths){.mmcif = options->mmcif}, NULL, &checker->archive) : OK;
}

static void finish(Checker *checker)
{
    archive_close(&checker->archive);
    arena_free(&checker->chain_arena);
    arena_free(&checker->folder_arena);
}

Status data_check(const char *path, const DataCheckOptions *options, DataCheckCounts *counts)
{
    Checker checker;
    struct stat info;
    if (stat(path, &info) != 0) return status_fail_at(ERR_IO, path, 0, "no such file or folder");
    TRY(start(&checker, options, counts));
    Status status = walk(&checker, path, true);
    finish(&checker);
    return status;
}

Status data_check_file(const char *path, DataKind kind, const char *sequence, const DataCheckOptions *options,
                       DataCheckCounts *counts)
{
    Checker checker;
    TRY(start(&checker, options, counts));
    snprintf(checker.chain, sizeof checker.chain, "asked for");
    Status status = check_one(&checker, path, kind, sequence);
    finish(&checker);
    return status;
}

void data_check_summary(const DataCheckCounts *counts, FILE *stream)
{
    int64_t read = 0;
    for (int kind = DATA_OTHER + 1; kind < DATA_KINDS; kind++) read += counts->files[kind];
    fprintf(stream, "%lld files read (%.1f MB)", (long long)read, (double)counts->bytes / 1e6);
    for (int kind = DATA_OTHER + 1; kind < DATA_KINDS; kind++)
        if (counts->files[kind]) fprintf(stream, ", %lld %s", (long long)counts->files[kind], data_kind_name(kind));
    fprintf(stream, "; %lld other files not read\n", (long long)counts->files[DATA_OTHER]);
    fprintf(stream, "%lld protein chains, %lld residues, %lld alignment rows, %lld template hits\n",
            (long long)counts->protein_chains, (long long)counts->residues, (long long)counts->alignment_rows,
            (long long)counts->hits);
    fprintf(stream, "%lld errors, %lld remarks\n", (long long)counts->errors, (long long)counts->remarks);
}
