#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/synth_internal.h"

enum { ENTRY_LETTERS = 36, MOST_CHAINS = 9 * 36 * 36 * 36, DATE_CYCLE = 240, DATE_STEP_DAYS = 61 };

SynthOptions synth_options_default(void)
{
    return (SynthOptions){.folder = "synthetic",
                          .seed = 1,
                          .chains = 16,
                          .length_median = 250,
                          .length_sigma = 0.6,
                          .length_min = 30,
                          .length_max = 2000,
                          .depth_median = 1500,
                          .depth_sigma = 1.7,
                          .depth_min = 1,
                          .depth_max = 50000,
                          .hits = 20,
                          .threads = 1};
}

SynthStream synth_stream(const SynthOptions *options, int64_t chain, SynthPart part)
{
    return (SynthStream){.draws = {.seed = options->seed, .index = (uint64_t)chain}, .copy = (int)part};
}

double synth_uniform(SynthStream *stream)
{
    return (double)(draws_bits(&stream->draws, DRAW_SYNTH, stream->copy, stream->at++) >> 11) * 0x1p-53;
}

double synth_normal(SynthStream *stream)
{
    double u = synth_uniform(stream), v = synth_uniform(stream);
    return sqrt(-2.0 * log(1.0 - u)) * cos(2.0 * M_PI * v);
}

int64_t synth_geometric(SynthStream *stream, double stop)
{
    return 1 + (int64_t)(log(1.0 - synth_uniform(stream)) / log(1.0 - stop));
}

/* Running sums of the amino acid frequencies of UniProtKB/Swiss-Prot (release statistics 2023_01), in the order of the
 * letters. */
char synth_letter(SynthStream *stream)
{
    static const char LETTERS[] = "ARNDCQEGHILKMFPSTWYV";
    static const double SUM[20] = {0.0825, 0.1378, 0.1784, 0.2330, 0.2468, 0.2861, 0.3533, 0.4240, 0.4467, 0.5058,
                                   0.6023, 0.6603, 0.6844, 0.7230, 0.7704, 0.8369, 0.8905, 0.9015, 0.9307, 1.0};
    double u = synth_uniform(stream);
    int k = 0;
    while (k < 19 && u >= SUM[k]) ++k;
    return LETTERS[k];
}

static int64_t log_normal(double median, double sigma, int64_t low, int64_t high, double normal)
{
    double value = median * exp(sigma * normal);
    if (!(value > (double)low)) return low;
    return value < (double)high ? (int64_t)value : high;
}

int64_t synth_length(const SynthOptions *o, int64_t chain)
{
    SynthStream stream = synth_stream(o, chain, SYNTH_SHAPE);
    return log_normal(o->length_median, o->length_sigma, o->length_min, o->length_max, synth_normal(&stream));
}

int64_t synth_depth(const SynthOptions *o, int64_t chain)
{
    SynthStream stream = synth_stream(o, chain, SYNTH_SHAPE);
    stream.at = 2; /* after the draws of the length */
    return log_normal(o->depth_median, o->depth_sigma, o->depth_min, o->depth_max, synth_normal(&stream));
}

void synth_name(int64_t chain, char name_out[8])
{
    static const char DIGITS[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    name_out[0] = (char)('9' - chain / (ENTRY_LETTERS * ENTRY_LETTERS * ENTRY_LETTERS) % 9);
    name_out[1] = DIGITS[chain / (ENTRY_LETTERS * ENTRY_LETTERS) % ENTRY_LETTERS];
    name_out[2] = DIGITS[chain / ENTRY_LETTERS % ENTRY_LETTERS];
    name_out[3] = DIGITS[chain % ENTRY_LETTERS];
    memcpy(name_out + 4, "_A", 3);
}

void synth_date(int64_t chain, char date_out[11])
{
    /* civil date of a day number counted from 0000-03-01 in eras of 400 years */
    const int64_t first = 723180; /* 1980-01-01 */
    int64_t day = first + chain % DATE_CYCLE * DATE_STEP_DAYS, era = day / 146097, of_era = day % 146097;
    int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year + year / 4 - year / 100), shifted = (5 * of_year + 2) / 153;
    int64_t month = shifted < 10 ? shifted + 3 : shifted - 9;
    snprintf(date_out, 11, "%04u-%02u-%02u", (unsigned)(year + era * 400 + (month <= 2)) % 10000, (unsigned)month % 100,
             (unsigned)(of_year - (153 * shifted + 2) / 5 + 1) % 100);
}

Status synth_sequence(const SynthOptions *options, int64_t chain, Arena *arena, char **sequence_out)
{
    SynthStream stream = synth_stream(options, chain, SYNTH_SEQUENCE);
    int64_t length = synth_length(options, chain);
    char *sequence = arena_alloc(arena, (size_t)length + 1);
    if (!sequence) return status_fail(ERR_MEMORY, "synth: no memory for %lld residues", (long long)length);
    for (int64_t i = 0; i < length; ++i) sequence[i] = synth_letter(&stream);
    *sequence_out = sequence;
    return OK;
}

static Status make_folder(const char *path)
{
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return OK;
    return status_fail_at(ERR_IO, path, 0, "cannot create the folder: %s", strerror(errno));
}

static Status make_folders(const SynthOptions *options, const char *below, Arena *arena)
{
    char *path = arena_printf(arena, "%s/%s", options->folder, below);
    return path ? make_folder(path) : status_fail(ERR_MEMORY, "synth: no memory for a path");
}

static Status write_chain(const SynthOptions *options, int64_t chain)
{
    Arena arena = {0};
    char name[8], *sequence;
    synth_name(chain, name);
    char *folder = arena_printf(&arena, "alignments/%s", name);
    Status status = folder ? make_folders(options, folder, &arena) : status_fail(ERR_MEMORY, "synth: no memory");
    if (status == OK) status = synth_sequence(options, chain, &arena, &sequence);
    if (status == OK) status = synth_write_structure(options, chain, sequence, &arena);
    if (status == OK) status = synth_write_alignments(options, chain, sequence, &arena);
    if (status == OK) status = synth_write_hits(options, chain, sequence, &arena);
    arena_free(&arena);
    return status;
}

typedef struct SynthRun {
    const SynthOptions *options;
    pthread_mutex_t lock;
    int64_t next, done;
    Status failure;
    char text[1024];
} SynthRun;

static void *work(void *argument)
{
    SynthRun *run = argument;
    pthread_mutex_lock(&run->lock);
    while (run->failure == OK && run->next < run->options->chains) {
        int64_t chain = run->next++;
        pthread_mutex_unlock(&run->lock);
        Status status = write_chain(run->options, chain);
        pthread_mutex_lock(&run->lock);
        if (status != OK && run->failure == OK) {
            run->failure = status;
            snprintf(run->text, sizeof run->text, "%s", status_text());
        }
        ++run->done;
        if (run->options->progress)
            run->options->progress(run->options->progress_context, run->done, run->options->chains);
    }
    pthread_mutex_unlock(&run->lock);
    return NULL;
}

static Status check_range(const char *what, double value, double low, double high)
{
    if (value >= low && value <= high) return OK;
    return status_fail(ERR_USAGE, "synth: %s is %g, expected %g to %g", what, value, low, high);
}

static Status check_options(const SynthOptions *o)
{
    const double most_length = 10000, most_depth = 1e6;
    TRY(check_range("chains", (double)o->chains, 1, MOST_CHAINS));
    TRY(check_range("shortest chain", (double)o->length_min, 10, most_length));
    TRY(check_range("longest chain", (double)o->length_max, (double)o->length_min, most_length));
    TRY(check_range("median length", o->length_median, 1, most_length));
    TRY(check_range("sigma of the length", o->length_sigma, 0, 5));
    TRY(check_range("fewest rows", (double)o->depth_min, 1, most_depth));
    TRY(check_range("most rows", (double)o->depth_max, (double)o->depth_min, most_depth));
    TRY(check_range("median of the rows", o->depth_median, 1, most_depth));
    TRY(check_range("sigma of the rows", o->depth_sigma, 0, 5));
    TRY(check_range("hits", o->hits, 0, 200));
    return check_range("threads", o->threads, 1, 1024);
}

Status synth_write(const SynthOptions *options)
{
    TRY(check_options(options));
    Arena arena = {0};
    Status status = make_folder(options->folder);
    if (status == OK) status = make_folders(options, "mmcif", &arena);
    if (status == OK) status = make_folders(options, "alignments", &arena);
    pthread_t *thread = arena_array(&arena, (size_t)options->threads, sizeof *thread);
    if (status == OK && !thread) status = status_fail(ERR_MEMORY, "synth: no memory for threads");
    if (status == OK) {
        SynthRun run = {.options = options};
        int started = 0;
        pthread_mutex_init(&run.lock, NULL);
        while (started < options->threads - 1 && pthread_create(&thread[started], NULL, work, &run) == 0) ++started;
        work(&run); /* this thread is one of them, so the work is done even if no other could be started */
        for (int i = 0; i < started; ++i) pthread_join(thread[i], NULL);
        pthread_mutex_destroy(&run.lock);
        if (run.failure != OK) status = status_fail(run.failure, "%s", run.text);
    }
    arena_free(&arena);
    return status;
}
