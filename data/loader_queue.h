/* The policy of the loader as a state machine without threads or clocks, shared by the real loader (loader.c) and the
 * simulated one (loader_sim.c).
 *
 * Samples have numbers 0, 1, 2, ... Workers claim the lowest number nobody has, into a free slot; finished ones wait in
 * their slots until they are taken.
 *   ordered      the consumer gets exactly 0, 1, 2, ...; a slow sample makes everybody wait.
 *   ready-first  the consumer gets the lowest number that is ready; slow samples come later.
 *
 * Nothing is lost or repeated: a number is claimed once, and its slot is freed only after it was taken (or has failed).
 * Nothing is starved: no number is claimed that is `window` or more above the lowest one not yet delivered. So sample n
 * is delivered before any sample >= n + window, i.e. after at most window - 1 others that come after it in order; and
 * once it is ready, at most slots - 1 others go first (those with lower numbers that are in slots already).
 * With epoch_length > 0 samples of one epoch are all delivered before the first of the next (they are prepared ahead,
 * though). */
#ifndef FOLDSCALE_DATA_LOADER_QUEUE_H
#define FOLDSCALE_DATA_LOADER_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/arena.h"
#include "engine/status.h"

typedef struct QueueOptions {
    int slots; /* samples in work or waiting, at least 1 */
    bool ready_first;
    int64_t window;       /* >= 1; at least the slots to be of use */
    int64_t epoch_length; /* 0: no epochs */
    int64_t end;          /* number of samples in all; -1: endless */
} QueueOptions;

typedef struct LoaderQueue LoaderQueue;

/* Continues after a checkpoint: all numbers below `next` and the `done` numbers (ascending, all >= next) have been
 * delivered before. */
Status loader_queue_create(const QueueOptions *options, int64_t next, const int64_t *done, int64_t done_count,
                           Arena *arena, LoaderQueue **queue_out);

/* A free slot and the next number for it; false when there is none now (no slot, window full, or the end). */
bool loader_queue_claim(LoaderQueue *queue, int *slot_out, int64_t *number_out);
/* The sample in the slot is ready, or has failed (it then counts as delivered, and its slot is free). */
void loader_queue_finish(LoaderQueue *queue, int slot, bool failed);
/* A ready slot by the policy; false when the consumer has to wait. */
bool loader_queue_take(LoaderQueue *queue, int *slot_out, int64_t *number_out);
/* Exactly this number; false when it is not ready. */
bool loader_queue_take_number(LoaderQueue *queue, int64_t number, int *slot_out);
/* The consumer is done with the slot. */
void loader_queue_release(LoaderQueue *queue, int slot);

/* Everything up to the end has been delivered or has failed. */
bool loader_queue_at_end(const LoaderQueue *queue);
/* The number has been delivered, has failed, or is beyond the end: it will never be ready (again). */
bool loader_queue_is_past(const LoaderQueue *queue, int64_t number);
/* Lowest number not delivered, and the delivered ones above it (ascending; at most `room`, which window always
 * suffices for). Samples that are taken but not released count as delivered. */
int64_t loader_queue_progress(const LoaderQueue *queue, int64_t *done_out, int64_t room, int64_t *done_count_out);
/* Largest number of later samples that ever went before one. */
int64_t loader_queue_overtaken(const LoaderQueue *queue);

#endif
