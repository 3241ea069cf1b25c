#include "data/pack_record.h"

#include <string.h>

enum { DATE_SIZE = 11 };

static const int64_t MOST_RESIDUES = (int64_t)1 << 24, MOST_ROWS = (int64_t)1 << 31;

static Status damaged(const char *name, const char *what)
{
    return status_fail(ERR_INPUT, "pack: record %s is damaged (%s)", name, what);
}

void pack_put_chain(ByteWriter *writer, const Chain *chain)
{
    size_t length = (size_t)chain->length, atoms = length * ATOM37_COUNT;
    bytes_put_string(writer, chain->entry_id);
    bytes_put_string(writer, chain->chain_id);
    bytes_put_string(writer, chain->label_id);
    bytes_put_string(writer, chain->entity_id);
    bytes_put_string(writer, chain->method);
    bytes_put_string(writer, chain->release_date);
    bytes_put_string(writer, chain->sequence);
    bytes_put_array(writer, &chain->resolution, 1, sizeof chain->resolution);
    bytes_put_u64(writer, length);
    bytes_put_array(writer, chain->aatype, length, sizeof *chain->aatype);
    bytes_put_array(writer, chain->residue_index, length, sizeof *chain->residue_index);
    bytes_put_array(writer, chain->mask, atoms, sizeof *chain->mask);
    bytes_put_array(writer, NULL, 0, sizeof *chain->positions);
    for (size_t a = 0; a < atoms; ++a)
        if (chain->mask[a]) bytes_put(writer, chain->positions + a * 3, 3 * sizeof *chain->positions);
}

/* Spreads the resolved atoms over [length, 37, 3]. */
static Status get_positions(const char *name, ByteReader *reader, Arena *arena, Chain *chain)
{
    size_t atoms = (size_t)chain->length * ATOM37_COUNT, resolved = 0;
    for (size_t a = 0; a < atoms; ++a) resolved += chain->mask[a] != 0;
    const float *packed = bytes_get_array(reader, resolved, 3 * sizeof *packed);
    if (!packed) return damaged(name, "too few coordinates");
    chain->positions = arena_array(arena, atoms, 3 * sizeof *chain->positions);
    if (!chain->positions) return status_fail(ERR_MEMORY, "pack: no memory for %s", name);
    for (size_t a = 0; a < atoms; ++a) {
        if (!chain->mask[a]) continue;
        memcpy(chain->positions + a * 3, packed, 3 * sizeof *packed);
        packed += 3;
    }
    return OK;
}

/* Strings and arrays are handed out as they lie in the record; nobody writes to them. */
Status pack_get_chain(const char *name, ByteReader *reader, Arena *arena, Chain *chain_out)
{
    Chain chain = {0};
    chain.entry_id = (char *)bytes_get_string(reader);
    chain.chain_id = (char *)bytes_get_string(reader);
    chain.label_id = (char *)bytes_get_string(reader);
    chain.entity_id = (char *)bytes_get_string(reader);
    chain.method = (char *)bytes_get_string(reader);
    const char *date = bytes_get_string(reader);
    chain.sequence = (char *)bytes_get_string(reader);
    const float *resolution = bytes_get_array(reader, 1, sizeof *resolution);
    chain.length = bytes_get_count(reader, MOST_RESIDUES);
    size_t length = (size_t)chain.length, atoms = length * ATOM37_COUNT;
    chain.aatype = (int8_t *)bytes_get_array(reader, length, sizeof *chain.aatype);
    chain.residue_index = (int32_t *)bytes_get_array(reader, length, sizeof *chain.residue_index);
    chain.mask = (uint8_t *)bytes_get_array(reader, atoms, sizeof *chain.mask);
    if (reader->failed || strlen(date) >= DATE_SIZE || strlen(chain.sequence) != length) return damaged(name, "chain");
    memcpy(chain.release_date, date, strlen(date) + 1);
    chain.resolution = *resolution;
    TRY(get_positions(name, reader, arena, &chain));
    *chain_out = chain;
    return OK;
}

static void put_hit(ByteWriter *writer, const TemplateHit *hit)
{
    bytes_put_u64(writer, (uint64_t)hit->index);
    bytes_put_string(writer, hit->name);
    bytes_put_string(writer, hit->description);
    bytes_put_u64(writer, (uint64_t)hit->aligned_columns);
    bytes_put_f64(writer, hit->sum_probs);
    bytes_put_string(writer, hit->query);
    bytes_put_string(writer, hit->hit_sequence);
    bytes_put_u64(writer, (uint64_t)hit->length);
    bytes_put_array(writer, hit->query_indices, (size_t)hit->length, sizeof *hit->query_indices);
    bytes_put_array(writer, hit->hit_indices, (size_t)hit->length, sizeof *hit->hit_indices);
}

static TemplateHit get_hit(ByteReader *reader)
{
    TemplateHit hit = {0};
    hit.index = (int64_t)bytes_get_u64(reader);
    hit.name = (char *)bytes_get_string(reader);
    hit.description = (char *)bytes_get_string(reader);
    hit.aligned_columns = bytes_get_count(reader, MOST_RESIDUES);
    hit.sum_probs = bytes_get_f64(reader);
    hit.query = (char *)bytes_get_string(reader);
    hit.hit_sequence = (char *)bytes_get_string(reader);
    hit.length = bytes_get_count(reader, MOST_RESIDUES);
    hit.query_indices = (int32_t *)bytes_get_array(reader, (size_t)hit.length, sizeof *hit.query_indices);
    hit.hit_indices = (int32_t *)bytes_get_array(reader, (size_t)hit.length, sizeof *hit.hit_indices);
    return hit;
}

void pack_put_alignment(ByteWriter *writer, const PreparedMsa *msa, const TemplateHits *hits, const int32_t *order,
                        int64_t count)
{
    size_t rows = (size_t)msa->rows, entries = (size_t)msa->start[msa->rows];
    bytes_put_u64(writer, rows);
    bytes_put_u64(writer, (uint64_t)msa->columns);
    bytes_put_u64(writer, entries);
    bytes_put_array(writer, msa->ids, rows * (size_t)msa_stride(msa->columns), sizeof *msa->ids);
    bytes_put_array(writer, msa->profile, (size_t)msa->columns * PROFILE_CLASSES, sizeof *msa->profile);
    bytes_put_array(writer, msa->start, rows + 1, sizeof *msa->start);
    bytes_put_array(writer, msa->deletion_column, entries, sizeof *msa->deletion_column);
    bytes_put_array(writer, msa->deletion_count, entries, sizeof *msa->deletion_count);
    bytes_put_u64(writer, (uint64_t)count);
    for (int64_t i = 0; i < count; ++i) put_hit(writer, &hits->hit[order[i]]);
}

/* What the feature code relies on without looking again. */
static Status check_msa(const char *name, const PreparedMsa *msa)
{
    uint8_t largest = 0;
    for (int64_t i = 0; i < msa->rows * msa_stride(msa->columns); ++i)
        largest = msa->ids[i] > largest ? msa->ids[i] : largest;
    if (largest > MSA_ABSENT) return damaged(name, "residue id");
    if (msa->start[0] != 0) return damaged(name, "list of deletions");
    for (int64_t row = 0; row < msa->rows; ++row)
        if (msa->start[row] > msa->start[row + 1]) return damaged(name, "list of deletions");
    return OK;
}

static Status get_msa(const char *name, ByteReader *reader, PreparedMsa *msa)
{
    msa->rows = bytes_get_count(reader, MOST_ROWS);
    msa->columns = bytes_get_count(reader, MOST_RESIDUES);
    size_t rows = (size_t)msa->rows, columns = (size_t)msa->columns;
    size_t entries = (size_t)bytes_get_count(reader, (int64_t)reader->size);
    msa->ids = bytes_get_array(reader, rows * (size_t)msa_stride(msa->columns), sizeof *msa->ids);
    msa->profile = bytes_get_array(reader, columns * PROFILE_CLASSES, sizeof *msa->profile);
    msa->start = bytes_get_array(reader, rows + 1, sizeof *msa->start);
    msa->deletion_column = bytes_get_array(reader, entries, sizeof *msa->deletion_column);
    msa->deletion_count = bytes_get_array(reader, entries, sizeof *msa->deletion_count);
    if (reader->failed || msa->rows < 1 || msa->start[msa->rows] != (int64_t)entries) return damaged(name, "alignment");
    return check_msa(name, msa);
}

Status pack_get_alignment(const char *name, ByteReader *reader, Arena *arena, PreparedMsa *msa_out,
                          TemplateHits *hits_out)
{
    PreparedMsa msa = {0};
    TRY(get_msa(name, reader, &msa));
    TemplateHits hits = {.count = bytes_get_count(reader, PACK_MOST_HITS)};
    hits.hit = arena_array(arena, (size_t)hits.count, sizeof *hits.hit);
    if (!hits.hit) return status_fail(ERR_MEMORY, "pack: no memory for the hits of %s", name);
    for (int64_t i = 0; i < hits.count && !reader->failed; ++i) hits.hit[i] = get_hit(reader);
    if (reader->failed) return damaged(name, "hits");
    *msa_out = msa;
    *hits_out = hits;
    return OK;
}
