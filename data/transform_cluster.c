/* Clusters: each extra row goes to the cluster with the most equal ids, then clusters are summed up. The assignment is
 * the dearest step of a sample (124 x 4,876 x 300 comparisons for a deep alignment), so it works on bytes, 64 columns
 * at a time. */
#include <string.h>

#include "data/residue.h"
#include "data/transform.h"

enum { KEY_NONE = 255, LANES = 64, KEY_LANES = 2 * LANES, SEGMENT = 255 };

/* One clone per instruction set, chosen when the program starts. Sanitizers cannot run the choice that early. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE
#endif

#define INLINE static inline __attribute__((always_inline)) /* into every clone */

typedef uint8_t ByteVector __attribute__((vector_size(LANES), aligned(1), may_alias));

/* One lane per cluster: no sums across lanes are needed. Adds to counts[0..127] the equal ids of `row` and 128 clusters
 * whose keys are key[column][128]; at most 255 columns, so that no byte overflows. */
INLINE void count_equal(const uint8_t *row, const uint8_t *key, int64_t columns, uint32_t *counts)
{
    ByteVector low = {0}, high = {0};
    for (int64_t c = 0; c < columns; ++c) {
        ByteVector x = (ByteVector){0} + row[c];
        low -= (ByteVector)(x == *(const ByteVector *)(key + c * KEY_LANES)); /* true is -1, that is 255 */
        high -= (ByteVector)(x == *(const ByteVector *)(key + c * KEY_LANES + LANES));
    }
    uint8_t bytes[KEY_LANES];
    memcpy(bytes, &low, LANES);
    memcpy(bytes + LANES, &high, LANES);
    for (int k = 0; k < KEY_LANES; ++k) counts[k] += bytes[k];
}

/* Clusters with the largest count, the first of equals: the largest of count x 2^12 + (2^12 - 1 - index in its piece).
 */
INLINE int32_t first_largest(const uint32_t *counts, int64_t clusters)
{
    enum { PIECE = 1 << 12 };
    uint32_t best = 0;
    int32_t assigned = 0;
    for (int64_t base = 0; base < clusters; base += PIECE) {
        int64_t end = clusters - base < PIECE ? clusters - base : PIECE;
        uint32_t largest = 0;
        for (uint32_t k = 0; k < (uint32_t)end; ++k) {
            uint32_t ranked = counts[base + k] * PIECE + (PIECE - 1 - k);
            largest = ranked > largest ? ranked : largest;
        }
        if (largest / PIECE > best || base == 0) {
            best = largest / PIECE;
            assigned = (int32_t)(base + (PIECE - 1 - largest % PIECE));
        }
    }
    return assigned;
}

WIDE static void assign_rows(const uint8_t *key, int64_t cluster_count, int64_t lanes, const uint8_t *const *extra,
                             int64_t extra_count, int64_t columns, uint32_t *counts, int32_t *assignment_out)
{
    for (int64_t e = 0; e < extra_count; ++e) {
        memset(counts, 0, (size_t)lanes * sizeof *counts);
        for (int64_t k = 0; k < lanes; k += KEY_LANES)
            for (int64_t c = 0; c < columns; c += SEGMENT)
                count_equal(extra[e] + c, key + k * columns + c * KEY_LANES,
                            columns - c < SEGMENT ? columns - c : SEGMENT, counts + k);
        assignment_out[e] = first_largest(counts, cluster_count);
    }
}

int64_t transform_key_clusters(int64_t cluster_count)
{
    return (cluster_count + KEY_LANES - 1) / KEY_LANES * KEY_LANES;
}

int64_t transform_key_bytes(int64_t cluster_count, int64_t columns)
{
    return transform_key_clusters(cluster_count) * columns;
}

/* Keys [clusters / 128, columns, 128]: gap, masked and absent equal nothing. */
static void make_keys(const uint8_t *clusters, int64_t cluster_count, int64_t columns, uint8_t *key)
{
    int64_t stride = msa_stride(columns);
    memset(key, KEY_NONE, (size_t)transform_key_bytes(cluster_count, columns));
    for (int64_t k = 0; k < cluster_count; ++k) {
        uint8_t *lane = key + k / KEY_LANES * KEY_LANES * columns + k % KEY_LANES;
        for (int64_t c = 0; c < columns; ++c) {
            uint8_t id = clusters[k * stride + c];
            if (id < RESTYPE_GAP) lane[c * KEY_LANES] = id;
        }
    }
}

void transform_cluster_assign(const uint8_t *clusters, int64_t cluster_count, const uint8_t *const *extra,
                              int64_t extra_count, int64_t columns, uint8_t *key, uint32_t *counts,
                              int32_t *assignment_out)
{
    make_keys(clusters, cluster_count, columns, key);
    assign_rows(key, cluster_count, transform_key_clusters(cluster_count), extra, extra_count, columns, counts,
                assignment_out);
}

void transform_cluster_add(const uint8_t *ids, int64_t width, uint32_t *counts)
{
    for (int64_t c = 0; c < width; ++c) ++counts[c * MSA_COUNTS + ids[c]];
}

void transform_deletions_add(DeletionRow deletions, int64_t first, int64_t width, float *sum)
{
    for (int64_t d = 0; d < deletions.entries; ++d) {
        int64_t c = deletions.column[d] - first;
        if (c >= 0 && c < width) sum[c] += (float)deletions.count[d];
    }
}

void transform_cluster_profile(const uint32_t *counts, const float *deletion_sum, int64_t rows, int64_t width,
                               float *profile_out, float *mean_out)
{
    for (int64_t c = 0; c < width; ++c) {
        const uint32_t *column = counts + c * MSA_COUNTS;
        float scale = 1.0f / (1e-6f + (float)(rows - column[MSA_ABSENT]));
        for (int k = 0; k < MSA_CLASSES; ++k) profile_out[c * MSA_CLASSES + k] = (float)(int32_t)column[k] * scale;
        mean_out[c] = deletion_sum[c] * scale;
    }
}
