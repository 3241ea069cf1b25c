/* Initial values of parameters, drawn by counter: element e of parameter NAME is a function of (seed, NAME, e) alone.
 */
#include "engine/store.h"

#include <math.h>
#include <stdlib.h>

#include "engine/convert.h"
#include "engine/philox.h"
#include "engine/store_internal.h"

/* Elements depend on no other: long parameters are drawn by all cores (93 million values take 2 s on one). */
enum { PARALLEL_FROM = 1 << 14 };

static uint64_t fnv1a(const char *text)
{
    uint64_t hash = 0xcbf29ce484222325u; /* Fowler, Noll, Vo: 64-bit offset basis and prime */
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return hash;
}

/* The stream of one parameter: key from the seed and the name, words by block number. */
typedef struct Stream {
    uint32_t key[2];
} Stream;

static Stream stream_of(uint64_t seed, const char *name)
{
    uint64_t mixed = fnv1a(name) ^ (seed * 0x9e3779b97f4a7c15u); /* odd multiplier: seeds stay distinct */
    return (Stream){{(uint32_t)mixed, (uint32_t)(mixed >> 32)}};
}

static void stream_words(const Stream *stream, int64_t block, uint32_t attempt, uint32_t words[4])
{
    uint32_t counter[4] = {(uint32_t)block, (uint32_t)((uint64_t)block >> 32), attempt, 0};
    philox4x32(counter, stream->key, words);
}

/* Box and Muller 1958: two independent normals from two uniform words; keeps the first that is within +-2. */
static bool normal_within_two(uint32_t a, uint32_t b, double *value_out)
{
    double radius = sqrt(-2 * log((a + 0.5) * 0x1p-32));
    double angle = 2 * M_PI * (b + 0.5) * 0x1p-32;
    double value = radius * cos(angle);
    if (fabs(value) > 2) value = radius * sin(angle);
    *value_out = value;
    return fabs(value) <= 2;
}

static void fill_normal(const Stream *stream, double std, int64_t count, double *values)
{
    /* std of a standard normal cut at +-2: sqrt(1 - 2 c phi(c) / (2 Phi(c) - 1)) with c = 2 */
    double density = exp(-2.0) / sqrt(2 * M_PI);
    double scale = std / sqrt(1 - 4 * density / erf(M_SQRT2));
#pragma omp parallel for if (count >= PARALLEL_FROM)
    for (int64_t e = 0; e < count; e += 2) {
        bool found[2] = {false, e + 1 >= count};
        for (uint32_t attempt = 0; !found[0] || !found[1]; attempt++) {
            uint32_t words[4];
            stream_words(stream, e / 2, attempt, words);
            for (int lane = 0; lane < 2; lane++) {
                double value;
                if (found[lane] || !normal_within_two(words[2 * lane], words[2 * lane + 1], &value)) continue;
                values[e + lane] = scale * value;
                found[lane] = true;
            }
        }
    }
}

/* Box and Muller without the cut. */
static void fill_gaussian(const Stream *stream, double std, int64_t count, double *values)
{
#pragma omp parallel for if (count >= PARALLEL_FROM)
    for (int64_t e = 0; e < count; e += 2) {
        uint32_t words[4];
        stream_words(stream, e / 2, 0, words);
        double radius = std * sqrt(-2 * log((words[0] + 0.5) * 0x1p-32)), angle = 2 * M_PI * (words[1] + 0.5) * 0x1p-32;
        values[e] = radius * cos(angle);
        if (e + 1 < count) values[e + 1] = radius * sin(angle);
    }
}

static void fill_uniform(const Stream *stream, double std, int64_t count, double *values)
{
    double limit = sqrt(3.0) * std;
#pragma omp parallel for if (count >= PARALLEL_FROM)
    for (int64_t e = 0; e < count; e += 2) {
        uint32_t words[4];
        stream_words(stream, e / 2, 0, words);
        for (int lane = 0; lane < 2 && e + lane < count; lane++)
            values[e + lane] = limit * (2 * philox_uniform_f64(words[2 * lane], words[2 * lane + 1]) - 1);
    }
}

static void fill_param(const ParamInfo *param, uint64_t seed, double *values)
{
    Stream stream = stream_of(seed, param->name);
    double constant = param->init == INIT_ONE ? 1 : param->init == INIT_CONSTANT ? param->init_value : 0;
    switch (param->init) {
    case INIT_NORMAL:
        fill_normal(&stream, param->init_value, param->count, values);
        return;
    case INIT_GAUSSIAN:
        fill_gaussian(&stream, param->init_value, param->count, values);
        return;
    case INIT_UNIFORM:
        fill_uniform(&stream, param->init_value, param->count, values);
        return;
    default:
        break;
    }
    for (int64_t e = 0; e < param->count; e++) values[e] = constant;
}

Status store_init_params(Store *store, uint64_t seed)
{
    const Registry *registry = store->registry;
    int64_t longest = 0;
    for (int i = 0; i < store->n_params; i++)
        if (registry->param[i].count > longest) longest = registry->param[i].count;
    double *values = malloc(((size_t)longest + 1) * sizeof *values);
    if (!values) return status_fail(ERR_MEMORY, "out of memory for %ld initial values", (long)longest);
    Status status = OK;
    for (int i = 0; i < store->n_params && status == OK; i++) {
        fill_param(&registry->param[i], seed, values);
        status = store_write_param(store, PLACE_PARAM, i, DT_F64, values, registry->param[i].count);
    }
    if (status == OK) status = store->backend->finish(store->backend);
    if (status == OK) status = store_lower_params(store);
    free(values);
    return status;
}
