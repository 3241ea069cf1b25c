/* One attempt to read bytes with each reader, for the fuzz targets and for test_damage: whatever the bytes are, the
 * reader either fails or returns something that keeps its promises; a broken promise aborts. */
#ifndef FOLDSCALE_TESTS_READER_TRIALS_H
#define FOLDSCALE_TESTS_READER_TRIALS_H

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "data/alignment.h"
#include "data/archive_internal.h"
#include "data/hhr.h"
#include "data/mmcif.h"
#include "engine/safetensors.h"

#define TRIAL_PROMISE(CONDITION)                                                                                       \
    do {                                                                                                               \
        if (!(CONDITION)) {                                                                                            \
            fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #CONDITION);                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static inline void trial_chain(const Chain *chain, bool header_only)
{
    TRIAL_PROMISE(chain->length > 0 && (int64_t)strlen(chain->sequence) == chain->length);
    TRIAL_PROMISE(header_only == (chain->positions == NULL));
    for (int64_t i = 0; i < chain->length; i++) {
        TRIAL_PROMISE(chain->aatype[i] >= 0 && chain->aatype[i] <= RESTYPE_UNKNOWN);
        TRIAL_PROMISE(chain->residue_index[i] == i);
    }
    for (int64_t i = 0; !header_only && i < chain->length * ATOM37_COUNT; i++) {
        TRIAL_PROMISE(chain->mask[i] <= 1);
        for (int k = 0; k < 3; k++) {
            float position = chain->positions[3 * i + k];
            TRIAL_PROMISE(isfinite(position) && (chain->mask[i] || position == 0));
        }
    }
}

static inline bool trial_mmcif(const Text *text)
{
    bool read = false;
    for (int header_only = 0; header_only < 2; header_only++) {
        Arena arena = {0};
        Structure *structure = NULL;
        Status status = (header_only ? mmcif_parse_header : mmcif_parse)(text, NULL, &arena, &structure);
        if (status == OK)
            for (int64_t i = 0; i < structure->chain_count; i++) trial_chain(&structure->chain[i], header_only);
        read = read || status == OK;
        arena_free(&arena);
    }
    return read;
}

static inline void trial_msa(const Msa *msa)
{
    for (int64_t i = 0; i < msa->rows * msa->columns; i++)
        TRIAL_PROMISE(msa->hhblits_id[i] <= RESTYPE_GAP && msa->deletions[i] >= 0);
}

static inline bool trial_alignment(const Text *text, bool stockholm)
{
    Arena arena = {0};
    Msa msa, joined;
    Status status = (stockholm ? alignment_parse_stockholm : alignment_parse_a3m)(text, NULL, &arena, &msa);
    if (status == OK && msa.rows) {
        trial_msa(&msa);
        char *sequence = arena_alloc(&arena, (size_t)msa.columns + 1);
        TRIAL_PROMISE(sequence);
        memset(sequence, 'A', (size_t)msa.columns);
        const Msa twice[2] = {msa, msa};
        TRIAL_PROMISE(alignment_join(twice, 2, sequence, &arena, &joined) == OK);
        TRIAL_PROMISE(joined.rows >= 1 && joined.rows <= msa.rows);
        trial_msa(&joined);
    }
    arena_free(&arena);
    return status == OK;
}

static inline bool trial_a3m(const Text *text)
{
    return trial_alignment(text, false);
}

static inline bool trial_sto(const Text *text)
{
    return trial_alignment(text, true);
}

static inline bool trial_hhr(const Text *text)
{
    Arena arena = {0};
    TemplateHits hits;
    Status status = hhr_parse(text, NULL, &arena, &hits);
    for (int64_t i = 0; status == OK && i < hits.count; i++) {
        const TemplateHit *hit = &hits.hit[i];
        TRIAL_PROMISE(hit->length > 0 && (int64_t)strlen(hit->query) == hit->length);
        TRIAL_PROMISE((int64_t)strlen(hit->hit_sequence) == hit->length && isfinite(hit->sum_probs));
        for (int64_t k = 0; k < hit->length; k++) {
            TRIAL_PROMISE((hit->query[k] == '-') == (hit->query_indices[k] == -1) && hit->query_indices[k] >= -1);
            TRIAL_PROMISE((hit->hit_sequence[k] == '-') == (hit->hit_indices[k] == -1) && hit->hit_indices[k] >= -1);
        }
    }
    arena_free(&arena);
    return status == OK;
}

enum { TRIAL_DB_BYTES = 200000 };

/* A folder with 0.db and 1.db, made once and left to the system's temporary folder. */
static inline const char *trial_db_folder(void)
{
    static char folder[64];
    if (*folder) return folder;
    strcpy(folder, "/tmp/foldscale_db_XXXXXX");
    TRIAL_PROMISE(mkdtemp(folder));
    for (int i = 0; i < 2; i++) {
        char path[80];
        snprintf(path, sizeof path, "%s/%d.db", folder, i);
        int handle = open(path, O_WRONLY | O_CREAT, 0600);
        TRIAL_PROMISE(handle >= 0 && ftruncate(handle, TRIAL_DB_BYTES) == 0);
        close(handle);
    }
    return folder;
}

static inline bool trial_index(const Text *text)
{
    Arena arena = {0};
    AlignmentIndex index = {0};
    Status status = archive_index_parse(text, trial_db_folder(), NULL, &arena, &index);
    for (int64_t i = 0; status == OK && i < index.chains; i++) {
        const IndexedChain *chain = &index.chain[i];
        TRIAL_PROMISE(chain->first >= 0 && chain->count >= 0 && chain->first + chain->count <= index.files);
        for (int64_t f = chain->first; f < chain->first + chain->count; f++) {
            const ArchiveFile *file = &index.file[f];
            TRIAL_PROMISE(file->offset >= 0 && file->size >= 0 && file->offset + file->size <= TRIAL_DB_BYTES);
        }
    }
    arena_free(&arena);
    return status == OK;
}

static inline bool trial_json(const Text *text)
{
    bool read = false;
    for (int by_entry = 0; by_entry < 2; by_entry++) {
        Arena arena = {0};
        ChainTable table;
        Status status = archive_cache_parse(text, by_entry, &arena, &table);
        for (int64_t i = 0; status == OK && i < table.count; i++) {
            const ChainRecord *record = &table.record[i];
            TRIAL_PROMISE(*record->chain && *record->entry_id && *record->chain_id && *record->sequence);
            TRIAL_PROMISE(record->resolution >= 0 && record->cluster_size >= -1);
        }
        read = read || status == OK;
        arena_free(&arena);
    }
    return read;
}

static inline bool trial_lists(const Text *text)
{
    Arena arena = {0};
    DuplicateGroups groups = {0};
    ObsoleteEntries obsolete = {0};
    ClusterTable clusters = {0};
    bool read = archive_duplicates_parse(text, &arena, &groups) == OK;
    for (int64_t g = 0; read && g < groups.groups; g++)
        TRIAL_PROMISE(groups.first[g] < groups.first[g + 1] && groups.first[g + 1] <= groups.members);
    if (archive_obsolete_parse(text, &arena, &obsolete) == OK) {
        const Archive archive = {.obsolete = obsolete};
        TRIAL_PROMISE(*archive_current_entry(&archive, "116l"));
        read = true;
    }
    if (archive_clusters_parse(text, &arena, &clusters) == OK) {
        TRIAL_PROMISE(archive_cluster_find(&clusters, "3zee_1") < clusters.clusters);
        read = true;
    }
    arena_free(&arena);
    return read;
}

/* Readers that take a path get one to memory. */
static inline int trial_memory_file(const Text *text, char path[64])
{
    int handle = memfd_create("trial", 0);
    TRIAL_PROMISE(handle >= 0 && write(handle, text->data, text->size) == (ssize_t)text->size);
    snprintf(path, 64, "/proc/self/fd/%d", handle);
    return handle;
}

static inline bool trial_safetensors(const Text *text)
{
    char path[64];
    StFile *file = NULL;
    int handle = trial_memory_file(text, path);
    Status status = st_open(path, &file);
    for (int64_t i = 0; status == OK && i < st_count(file); i++) {
        const StTensor *tensor = st_at(file, i);
        TRIAL_PROMISE(st_find(file, tensor->name) == tensor);
        for (int64_t k = 0; k < tensor->count && k < 1000; k++) {
            double value;
            int64_t whole;
            TRIAL_PROMISE(st_read_f64(tensor, k, 1, &value) == OK);
            st_read_i64(tensor, tensor->count - 1 - k, 1, &whole);
        }
    }
    st_close(&file);
    close(handle);
    return status == OK;
}

static inline bool trial_gzip(const Text *text)
{
    char path[64];
    Text plain = {0};
    int handle = trial_memory_file(text, path);
    Status status = text_read(path, &plain);
    if (status == OK) TRIAL_PROMISE(plain.data[plain.size] == '\0');
    text_close(&plain);
    close(handle);
    return status == OK;
}

/* The body of a fuzz target: the bytes as a text of their own, so that a sanitizer sees any step past the end. */
static inline int trial_of_bytes(bool (*trial)(const Text *), const void *bytes, size_t size)
{
    Text text = {0};
    TRIAL_PROMISE(text_from_bytes("fuzz", bytes, size, &text) == OK);
    trial(&text);
    text_close(&text);
    return 0;
}

#endif
