#include "data/loader_queue.h"

#include <string.h>

typedef enum SlotState { SLOT_FREE, SLOT_WORKING, SLOT_READY, SLOT_TAKEN } SlotState;

typedef struct Slot {
    SlotState state;
    int64_t number;
} Slot;

struct LoaderQueue {
    QueueOptions options;
    Slot *slot;
    int64_t next;      /* to be claimed */
    int64_t low;       /* lowest number not delivered */
    bool *delivered;   /* [window]: number n (low <= n < low + window) at n % window */
    int64_t overtaken; /* largest */
    int64_t highest;   /* delivered so far, -1 at the start */
};

Status loader_queue_create(const QueueOptions *options, int64_t next, const int64_t *done, int64_t done_count,
                           Arena *arena, LoaderQueue **queue_out)
{
    enum { MOST_SLOTS = 1 << 16 };
    const int64_t most_window = (int64_t)1 << 24;
    if (options->slots < 1 || options->slots > MOST_SLOTS)
        return status_fail(ERR_USAGE, "loader: %d slots, expected 1 to %d", options->slots, MOST_SLOTS);
    if (options->window < 1 || options->window > most_window)
        return status_fail(ERR_USAGE, "loader: window of %lld, expected 1 to %lld", (long long)options->window,
                           (long long)most_window);
    LoaderQueue *queue = arena_alloc(arena, sizeof *queue);
    if (queue) queue->slot = arena_array(arena, (size_t)options->slots, sizeof *queue->slot);
    if (queue) queue->delivered = arena_array(arena, (size_t)options->window, sizeof *queue->delivered);
    if (!queue || !queue->slot || !queue->delivered)
        return status_fail(ERR_MEMORY, "loader: no memory for a window of %lld", (long long)options->window);
    queue->options = *options;
    queue->next = queue->low = next;
    queue->highest = next - 1;
    for (int64_t i = 0; i < done_count; ++i) {
        if (done[i] < next || done[i] >= next + options->window)
            return status_fail(ERR_INPUT, "loader: sample %lld of the saved state is outside %lld + %lld",
                               (long long)done[i], (long long)next, (long long)options->window);
        queue->delivered[done[i] % options->window] = true;
        if (done[i] > queue->highest) queue->highest = done[i];
    }
    while (queue->delivered[queue->low % options->window]) queue->delivered[queue->low++ % options->window] = false;
    queue->next = queue->low;
    *queue_out = queue;
    return OK;
}

static bool is_delivered(const LoaderQueue *queue, int64_t number)
{
    return number < queue->low || queue->delivered[number % queue->options.window];
}

bool loader_queue_claim(LoaderQueue *queue, int *slot_out, int64_t *number_out)
{
    const QueueOptions *o = &queue->options;
    while (queue->next < queue->low + o->window && is_delivered(queue, queue->next)) ++queue->next;
    if (queue->next >= queue->low + o->window || (o->end >= 0 && queue->next >= o->end)) return false;
    for (int s = 0; s < o->slots; ++s) {
        if (queue->slot[s].state != SLOT_FREE) continue;
        queue->slot[s] = (Slot){.state = SLOT_WORKING, .number = queue->next++};
        *slot_out = s;
        *number_out = queue->slot[s].number;
        return true;
    }
    return false;
}

/* Marks a number as delivered and moves the lower edge. */
static void deliver(LoaderQueue *queue, int64_t number)
{
    int64_t window = queue->options.window;
    if (number > queue->highest) queue->highest = number;
    /* every undelivered number below the highest delivered one has been overtaken by highest - number at most */
    if (number < queue->highest && queue->highest - number > queue->overtaken)
        queue->overtaken = queue->highest - number;
    queue->delivered[number % window] = true;
    while (queue->delivered[queue->low % window]) queue->delivered[queue->low++ % window] = false;
}

void loader_queue_finish(LoaderQueue *queue, int slot, bool failed)
{
    queue->slot[slot].state = failed ? SLOT_FREE : SLOT_READY;
    if (failed) deliver(queue, queue->slot[slot].number);
}

/* Samples from here on must wait for the epoch before. */
static int64_t barrier(const LoaderQueue *queue)
{
    int64_t length = queue->options.epoch_length;
    return length > 0 ? (queue->low / length + 1) * length : INT64_MAX;
}

bool loader_queue_take_number(LoaderQueue *queue, int64_t number, int *slot_out)
{
    for (int s = 0; s < queue->options.slots; ++s) {
        if (queue->slot[s].state != SLOT_READY || queue->slot[s].number != number) continue;
        queue->slot[s].state = SLOT_TAKEN;
        deliver(queue, number);
        *slot_out = s;
        return true;
    }
    return false;
}

bool loader_queue_take(LoaderQueue *queue, int *slot_out, int64_t *number_out)
{
    int64_t best = queue->options.ready_first ? barrier(queue) : queue->low + 1;
    bool found = false;
    for (int s = 0; s < queue->options.slots; ++s) {
        const Slot *slot = &queue->slot[s];
        if (slot->state != SLOT_READY || slot->number >= best) continue;
        best = slot->number;
        found = true;
    }
    if (!found) return false;
    *number_out = best;
    return loader_queue_take_number(queue, best, slot_out);
}

void loader_queue_release(LoaderQueue *queue, int slot)
{
    if (queue->slot[slot].state == SLOT_TAKEN) queue->slot[slot].state = SLOT_FREE;
}

bool loader_queue_at_end(const LoaderQueue *queue)
{
    return queue->options.end >= 0 && queue->low >= queue->options.end;
}

int64_t loader_queue_progress(const LoaderQueue *queue, int64_t *done_out, int64_t room, int64_t *done_count_out)
{
    int64_t count = 0;
    for (int64_t n = queue->low; n <= queue->highest && count < room; ++n)
        if (is_delivered(queue, n)) done_out[count++] = n;
    *done_count_out = count;
    return queue->low;
}

int64_t loader_queue_overtaken(const LoaderQueue *queue)
{
    return queue->overtaken;
}

bool loader_queue_is_past(const LoaderQueue *queue, int64_t number)
{
    if (queue->options.end >= 0 && number >= queue->options.end) return true;
    return number < queue->low + queue->options.window && is_delivered(queue, number);
}
