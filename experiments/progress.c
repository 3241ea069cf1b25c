#include "experiments/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "engine/clock.h"

static void format_time(double seconds, char *text, size_t size)
{
    long s = seconds < 0 ? 0 : (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, size, "%ld:%02ld", s / 60, s % 60);
}

void progress_begin(Progress *progress, const char *what, int64_t first, int64_t total, bool show)
{
    *progress = (Progress){.what = what,
                           .total = total,
                           .done = first,
                           .first = first,
                           .start_s = clock_now_s(),
                           .active = show && isatty(STDERR_FILENO)};
}

static void draw(const Progress *p, const char *note)
{
    enum { WIDTH = 24 };
    char bar[WIDTH + 1], left[32] = "?";
    double elapsed = clock_now_s() - p->start_s, rate = 0;
    int filled = p->total > 0 ? (int)((double)WIDTH * (double)p->done / (double)p->total) : 0;
    for (int i = 0; i < WIDTH; i++) bar[i] = i < filled ? '#' : '.';
    bar[WIDTH] = '\0';
    if (elapsed > 0) rate = (double)(p->done - p->first) / elapsed;
    if (rate > 0) format_time((double)(p->total - p->done) / rate, left, sizeof left);
    fprintf(stderr, "\r[%s] %s %lld/%lld  %.3g/s  %s left  %s\033[K", bar, p->what, (long long)p->done,
            (long long)p->total, rate, left, note ? note : "");
    fflush(stderr);
}

void progress_update(Progress *progress, int64_t done, const char *note)
{
    progress->done = done;
    if (!progress->active) return;
    double now = clock_now_s();
    if (now - progress->drawn_s < 0.1 && done < progress->total) return;
    progress->drawn_s = now;
    draw(progress, note);
}

void progress_end(Progress *progress)
{
    if (progress->active) fputc('\n', stderr);
    progress->active = false;
}
