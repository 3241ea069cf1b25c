/* Clusters: each extra row goes to the cluster with the most equal ids, then clusters are summed up. The assignment is
 * the dearest step of a sample (124 x 4,876 x 300 comparisons for a deep alignment), so it works on bytes, 64 columns
 * at a time. */
#include <string.h>

#include "data/residue.h"
#include "data/transform.h"

enum { KEY_NONE = 255, BLOCK_CLUSTERS = 4, SEGMENT = 255 * MSA_ROW_ALIGN };

/* One clone per instruction set, chosen when the program starts. Sanitizers cannot run the choice that early. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE
#endif

#define INLINE static inline __attribute__((always_inline)) /* into every clone */

typedef int8_t ByteVector __attribute__((vector_size(MSA_ROW_ALIGN), aligned(1), may_alias));
typedef uint64_t SumVector __attribute__((vector_size(MSA_ROW_ALIGN)));

/* Sum of 64 bytes, at most 64 x 255, by way of 16-bit lanes. */
INLINE int32_t sum_of_bytes(const ByteVector *counts)
{
    const uint64_t even = 0x00ff00ff00ff00ffull;
    SumVector v = (SumVector)*counts;
    v = (v & even) + ((v >> 8) & even);
    uint64_t lanes = v[0] + v[1] + v[2] + v[3] + v[4] + v[5] + v[6] + v[7];
    return (int32_t)((lanes * 0x0001000100010001ull) >> 48);
}

/* Adds the equal bytes of `row` and each of four keys, key_stride apart; `columns` is a multiple of 64 and at most
 * 255 x 64, so that no byte of the sums overflows. */
INLINE void count_equal(const uint8_t *row, const uint8_t *key, int64_t key_stride, int64_t columns,
                        int32_t counts[BLOCK_CLUSTERS])
{
    ByteVector sum0 = {0}, sum1 = {0}, sum2 = {0}, sum3 = {0};
    for (int64_t c = 0; c < columns; c += MSA_ROW_ALIGN) {
        ByteVector x = *(const ByteVector *)(row + c);
        sum0 -= x == *(const ByteVector *)(key + c); /* true is -1 */
        sum1 -= x == *(const ByteVector *)(key + key_stride + c);
        sum2 -= x == *(const ByteVector *)(key + 2 * key_stride + c);
        sum3 -= x == *(const ByteVector *)(key + 3 * key_stride + c);
    }
    counts[0] += sum_of_bytes(&sum0);
    counts[1] += sum_of_bytes(&sum1);
    counts[2] += sum_of_bytes(&sum2);
    counts[3] += sum_of_bytes(&sum3);
}

WIDE static void assign_rows(const uint8_t *key, int64_t cluster_count, const uint8_t *const *extra,
                             int64_t extra_count, int64_t stride, int32_t *assignment_out)
{
    for (int64_t e = 0; e < extra_count; ++e) {
        int32_t best = -1, assigned = 0;
        for (int64_t k = 0; k < cluster_count; k += BLOCK_CLUSTERS) {
            int32_t counts[BLOCK_CLUSTERS] = {0};
            for (int64_t c = 0; c < stride; c += SEGMENT) {
                int64_t width = stride - c < SEGMENT ? stride - c : SEGMENT;
                count_equal(extra[e] + c, key + k * stride + c, stride, width, counts);
            }
            for (int j = 0; j < BLOCK_CLUSTERS && k + j < cluster_count; ++j)
                if (counts[j] > best) {
                    best = counts[j];
                    assigned = (int32_t)(k + j);
                }
        }
        assignment_out[e] = assigned;
    }
}

/* Cluster rows as keys: gap, masked and padding equal nothing. Keys are rounded up to whole blocks of four. */
static void make_keys(const uint8_t *clusters, int64_t cluster_count, int64_t columns, int64_t stride, uint8_t *key)
{
    int64_t rows = (cluster_count + BLOCK_CLUSTERS - 1) / BLOCK_CLUSTERS * BLOCK_CLUSTERS;
    memset(key, KEY_NONE, (size_t)(rows * stride));
    for (int64_t k = 0; k < cluster_count; ++k)
        for (int64_t c = 0; c < columns; ++c) {
            uint8_t id = clusters[k * stride + c];
            if (id < RESTYPE_GAP) key[k * stride + c] = id;
        }
}

void transform_cluster_assign(const uint8_t *clusters, int64_t cluster_count, const uint8_t *const *extra,
                              int64_t extra_count, int64_t columns, uint8_t *key, int32_t *assignment_out)
{
    int64_t stride = transform_stride(columns);
    make_keys(clusters, cluster_count, columns, stride, key);
    assign_rows(key, cluster_count, extra, extra_count, stride, assignment_out);
}

void transform_cluster_add(const uint8_t *ids, const int32_t *deletions, int64_t width, uint32_t *counts,
                           float *deletion_sum)
{
    for (int64_t c = 0; c < width; ++c) ++counts[c * MSA_COUNTS + ids[c]];
    for (int64_t c = 0; c < width; ++c) deletion_sum[c] += (float)deletions[c];
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
