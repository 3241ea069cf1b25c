#include "data/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct Sampler {
    SamplerOptions options;
    int64_t chains, local_count;
    double *cumulative; /* [chains]; sums of the weights */
    int32_t *recycling;
    int recycling_count;
};

static const int32_t RECYCLING_DEFAULT[] = {0, 1, 2, 3};

Status sampler_create(const SamplerOptions *options, const double *weights, int64_t chains, Sampler **sampler_out)
{
    if (chains < 1) return status_fail(ERR_INPUT, "sampler: no chains");
    if (options->dp < 1 || options->dp_rank < 0 || options->dp_rank >= options->dp)
        return status_fail(ERR_USAGE, "sampler: rank %d of %d", options->dp_rank, options->dp);
    if (options->epoch_samples < 0)
        return status_fail(ERR_USAGE, "sampler: %lld samples per epoch", (long long)options->epoch_samples);
    Sampler *sampler = calloc(1, sizeof *sampler);
    int count = options->recycling ? options->recycling_count : 4;
    if (sampler) {
        sampler->cumulative = calloc((size_t)chains, sizeof *sampler->cumulative);
        sampler->recycling = calloc((size_t)(count > 0 ? count : 1), sizeof *sampler->recycling);
    }
    if (!sampler || !sampler->cumulative || !sampler->recycling) {
        sampler_destroy(&sampler);
        return status_fail(ERR_MEMORY, "sampler: no memory for %lld chains", (long long)chains);
    }
    const int32_t *recycling = options->recycling ? options->recycling : RECYCLING_DEFAULT;
    for (int i = 0; i < count; ++i) sampler->recycling[i] = recycling[i];
    sampler->recycling_count = count;
    sampler->options = *options;
    sampler->chains = chains;
    int64_t samples = options->epoch_samples ? options->epoch_samples : chains;
    sampler->local_count = (samples + options->dp - 1) / options->dp;
    double sum = 0.0;
    for (int64_t i = 0; i < chains; ++i) {
        double weight = weights ? weights[i] : 1.0;
        if (weight > 0.0 && isfinite(weight)) sum += weight;
        sampler->cumulative[i] = sum;
    }
    if (!(sum > 0.0)) {
        sampler_destroy(&sampler);
        return status_fail(ERR_INPUT, "sampler: none of %lld chains passed the filters", (long long)chains);
    }
    *sampler_out = sampler;
    return OK;
}

void sampler_destroy(Sampler **sampler)
{
    if (!*sampler) return;
    free((*sampler)->cumulative);
    free((*sampler)->recycling);
    free(*sampler);
    *sampler = NULL;
}

int64_t sampler_local_count(const Sampler *sampler)
{
    return sampler->local_count;
}

/* First chain whose running sum exceeds the draw. */
static int64_t weighted(const Sampler *sampler, int64_t epoch, int64_t position)
{
    Draws draws = {.seed = sampler->options.seed, .epoch = (uint64_t)epoch, .index = (uint64_t)position};
    double uniform;
    if (draws_uniform_f64(&draws, DRAW_CHAIN, 0, 0, &uniform) != OK) return 0; /* Philox draws do not fail */
    double target = uniform * sampler->cumulative[sampler->chains - 1];
    int64_t low = 0, high = sampler->chains - 1;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sampler->cumulative[middle] > target)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* A random permutation of 0..count-1 evaluated at one place: a Feistel network of eight Philox rounds on the next even
 * power of two, walked until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). */
static int64_t shuffled(const Sampler *sampler, int64_t epoch, int64_t position)
{
    int64_t round_trip = position / sampler->chains, x = position % sampler->chains;
    int half = 1;
    while ((int64_t)1 << (2 * half) < sampler->chains) ++half;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    Draws draws = {.seed = sampler->options.seed, .epoch = (uint64_t)epoch, .index = (uint64_t)round_trip};
    do {
        uint64_t left = (uint64_t)x >> half, right = (uint64_t)x & mask;
        for (int round = 0; round < 8; ++round) {
            uint64_t next = left ^ (draws_bits(&draws, DRAW_CHAIN, 1 + round, (int64_t)right) & mask);
            left = right;
            right = next;
        }
        x = (int64_t)(left << half | right);
    } while (x >= sampler->chains);
    return x;
}

int64_t sampler_chain_at(const Sampler *sampler, int64_t epoch, int64_t position)
{
    switch (sampler->options.order) {
    case SAMPLER_WEIGHTED:
        return weighted(sampler, epoch, position);
    case SAMPLER_SHUFFLED:
        return shuffled(sampler, epoch, position);
    default:
        return position % sampler->chains;
    }
}

SamplerItem sampler_item(const Sampler *sampler, int64_t number)
{
    SamplerItem item = {.epoch = number / sampler->local_count};
    item.position = number % sampler->local_count * sampler->options.dp + sampler->options.dp_rank;
    item.chain = sampler_chain_at(sampler, item.epoch, item.position);
    item.padding = sampler->options.order == SAMPLER_SEQUENTIAL && item.position >= sampler->chains;
    return item;
}

int64_t sampler_recycling(const Sampler *sampler, int64_t step)
{
    enum { MOST = 256 };
    int32_t order[MOST];
    int count = sampler->recycling_count < MOST ? sampler->recycling_count : MOST;
    if (count < 1) return 0;
    Draws draws = {.seed = sampler->options.seed, .index = (uint64_t)(step / count)};
    if (draws_permutation(&draws, DRAW_RECYCLING, 0, count, order) != OK) return 0; /* Philox draws do not fail */
    return sampler->recycling[order[step % count]];
}

int64_t sampler_recycling_max(const Sampler *sampler)
{
    int32_t most = 0;
    for (int i = 0; i < sampler->recycling_count; ++i)
        if (sampler->recycling[i] > most) most = sampler->recycling[i];
    return most;
}

int64_t sampler_validation_count(int64_t count, int64_t world)
{
    return (count + world - 1) / world;
}

int64_t sampler_validation_index(int64_t count, int64_t world, int64_t rank, int64_t k)
{
    return (k * world + rank) % count;
}
