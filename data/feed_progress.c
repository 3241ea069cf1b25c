#include "data/feed_progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

Status feed_progress_format(const FeedProgress *progress, const SamplerOptions *sampler, int64_t epoch_length,
                            Arena *arena, char **text_out)
{
    enum { HEAD = 256, EACH = 21 };
    size_t room = HEAD + EACH * (size_t)progress->done_count;
    char *text = arena_alloc(arena, room);
    if (!text) return status_fail(ERR_MEMORY, "feed: no memory for its state");
    int used =
        snprintf(text, room, "seed=%" PRIu64 " dp=%d rank=%d epoch=%" PRId64 " step=%" PRId64 " next=%" PRId64 " done=",
                 sampler->seed, sampler->dp, sampler->dp_rank, epoch_length, progress->step, progress->next);
    for (int64_t i = 0; i < progress->done_count; ++i)
        used += snprintf(text + used, room - (size_t)used, "%s%" PRId64, i ? "," : "", progress->done[i]);
    *text_out = text;
    return OK;
}

static Status mismatch(const char *what, int64_t found, int64_t expected)
{
    return status_fail(ERR_INPUT, "saved data state has %s %" PRId64 ", this run has %" PRId64, what, found, expected);
}

static Status parse_done(const char *list, int64_t next, Arena *arena, FeedProgress *progress)
{
    size_t room = 1;
    for (const char *c = list; *c; ++c) room += *c == ',';
    progress->done = arena_array(arena, room, sizeof *progress->done);
    if (!progress->done) return status_fail(ERR_MEMORY, "feed: no memory for its state");
    int64_t before = next - 1;
    while (*list) {
        char *end;
        int64_t number = strtoll(list, &end, 10);
        if (end == list || (*end && *end != ',') || number <= before)
            return status_fail(ERR_INPUT, "saved data state: expected ascending numbers at '%.40s'", list);
        progress->done[progress->done_count++] = before = number;
        list = *end ? end + 1 : end;
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
    TRY(parse_done(text + used, progress.next, arena, &progress));
    *progress_out = progress;
    return OK;
}
