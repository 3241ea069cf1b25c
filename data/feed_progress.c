#include "data/feed_progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PER_DIGIT = 4 };

Status feed_progress_format(const FeedProgress *progress, const SamplerOptions *sampler, int64_t epoch_length,
                            Arena *arena, char **text_out)
{
    enum { HEAD = 256 };
    int64_t count = progress->done_count;
    size_t digits = count ? (size_t)((progress->done[count - 1] - progress->next) / PER_DIGIT + 1) : 0;
    char *text = arena_alloc(arena, HEAD + digits + 1);
    unsigned char *bits = arena_alloc(arena, digits);
    if (!text || !bits) return status_fail(ERR_MEMORY, "feed: no memory for its state");
    for (int64_t i = 0; i < count; ++i) {
        int64_t above = progress->done[i] - progress->next;
        bits[above / PER_DIGIT] |= (unsigned char)(1 << above % PER_DIGIT);
    }
    int used =
        snprintf(text, HEAD, "seed=%" PRIu64 " dp=%d rank=%d epoch=%" PRId64 " step=%" PRId64 " next=%" PRId64 " done=",
                 sampler->seed, sampler->dp, sampler->dp_rank, epoch_length, progress->step, progress->next);
    for (size_t d = 0; d < digits; ++d) text[used++] = "0123456789abcdef"[bits[d]];
    *text_out = text;
    return OK;
}

static Status mismatch(const char *what, int64_t found, int64_t expected)
{
    return status_fail(ERR_INPUT, "saved data state has %s %" PRId64 ", this run has %" PRId64, what, found, expected);
}

static int digit_of(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static Status parse_done(const char *digits, Arena *arena, FeedProgress *progress)
{
    size_t length = strlen(digits);
    progress->done = arena_array(arena, length, PER_DIGIT * sizeof *progress->done);
    if (!progress->done) return status_fail(ERR_MEMORY, "feed: no memory for its state");
    for (size_t d = 0; d < length; ++d) {
        int bits = digit_of(digits[d]);
        if (bits < 0) return status_fail(ERR_INPUT, "saved data state: '%.40s' is not hexadecimal", digits + d);
        for (int k = 0; k < PER_DIGIT; ++k)
            if (bits >> k & 1) progress->done[progress->done_count++] = progress->next + (int64_t)d * PER_DIGIT + k;
    }
    return OK;
}

Status feed_progress_parse(const char *text, const SamplerOptions *sampler, int64_t epoch_length, Arena *arena,
                           FeedProgress *progress_out)
{
    FeedProgress progress = {0};
    uint64_t seed;
    int dp, rank, used = -1;
    int64_t length;
    if (sscanf(text, "seed=%" SCNu64 " dp=%d rank=%d epoch=%" SCNd64 " step=%" SCNd64 " next=%" SCNd64 " done=%n",
               &seed, &dp, &rank, &length, &progress.step, &progress.next, &used) != 6 ||
        used < 0 || progress.next < 0 || progress.step < 0)
        return status_fail(ERR_INPUT, "saved data state '%.80s' is not 'seed= dp= rank= epoch= step= next= done='",
                           text);
    if (seed != sampler->seed) return mismatch("seed", (int64_t)seed, (int64_t)sampler->seed);
    if (dp != sampler->dp) return mismatch("data-parallel ranks", dp, sampler->dp);
    if (rank != sampler->dp_rank) return mismatch("data-parallel rank", rank, sampler->dp_rank);
    if (length != epoch_length) return mismatch("samples per epoch and rank", length, epoch_length);
    TRY(parse_done(text + used, arena, &progress));
    *progress_out = progress;
    return OK;
}
