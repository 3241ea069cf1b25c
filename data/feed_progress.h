/* Progress of a feed as text, for the metadata of a checkpoint:
 *     seed=7 dp=4 rank=1 epoch=1000 step=13 next=11 done=41
 * Samples below `next` have been used, and those of `done`: hexadecimal digits of four samples each, from `next` on,
 * the lowest bit first (41: samples 13 and 15). That is at most a quarter of the loader's window. */
#ifndef FOLDSCALE_DATA_FEED_PROGRESS_H
#define FOLDSCALE_DATA_FEED_PROGRESS_H

#include "data/sampler.h"

typedef struct FeedProgress {
    int64_t step, next;
    int64_t *done; /* ascending, all >= next */
    int64_t done_count;
} FeedProgress;

Status feed_progress_format(const FeedProgress *progress, const SamplerOptions *sampler, int64_t epoch_length,
                            Arena *arena, char **text_out);
/* ERR_INPUT when it is not such a text or belongs to another sampler. */
Status feed_progress_parse(const char *text, const SamplerOptions *sampler, int64_t epoch_length, Arena *arena,
                           FeedProgress *progress_out);

#endif
