/* Compares the engine with golden files (tensors computed with the MLPerf reference): shared parts of
 * build/tests/parity. */
#ifndef FOLDSCALE_TESTS_PARITY_H
#define FOLDSCALE_TESTS_PARITY_H

#include "engine/exec.h"
#include "engine/passes.h"
#include "engine/safetensors.h"
#include "kernels/kernels.h"
#include "model/model.h"

typedef struct ParityOptions {
    const char *dir, *backend, *only;   /* only: substring that a case's name must contain, or NULL */
    const char *save, *beside, *spread; /* files of these options, or NULL */
    uint64_t dither;
    Switches switches;
    bool verbose; /* also print values that pass with exact zero error */
} ParityOptions;

/* What a number is, which decides its tolerance (golden README, "Fair tolerances"). */
typedef enum ParityKind {
    PARITY_REPRESENTATION, /* MSA, pair, single, logits, features */
    PARITY_GEOMETRY,       /* positions, frames */
    PARITY_ANGLE,
    PARITY_LOSS,
    PARITY_GRADIENT,      /* one tensor, l2 */
    PARITY_GRADIENT_ALL,  /* all parameters together, l2 */
    PARITY_GRADIENT_NORM, /* l2 norm of one tensor's gradient, or of all */
    PARITY_STEPPED,       /* parameters after three optimizer steps */
    PARITY_MOMENT,        /* Adam's moments after three steps, l2 */
    PARITY_KINDS
} ParityKind;

typedef struct ParityBeside ParityBeside;
typedef struct ParitySpread ParitySpread;

typedef struct Parity {
    ParityOptions options;
    Backend *backend;
    bool full; /* the 48-block golden: other measured tolerances */
    ParityBeside *beside;
    ParitySpread *spread;
    int checks, failures, skipped;
} Parity;

double parity_tolerance(const Parity *parity, ParityKind kind);
/* Violations are differences of positions, a tenth of the largest coordinate or less, and the directions of such
 * differences: an error of positions (relative to the largest coordinate) counts ten times in the parts of the
 * violation loss and in the gradient of all parameters with that loss on. The golden README states no tolerance for
 * either, nor for the gradient of a single tensor with that loss (parity_report_unstated). */
enum { PARITY_VIOLATION_FACTOR = 10 };
/* The same for a golden that was rounded to float32 when it was stored. */
double parity_tolerance_stored(const Parity *parity, ParityKind kind, bool rounded);
/* Worst over the ranks is taken; rank 0 prints "name error tolerance ok|FAIL". NaN fails. */
void parity_report(Parity *parity, const char *name, double error, double tolerance);
/* The same where the golden README states no tolerance and none is derived from one it states: in f32, too, what
 * --spread says takes the place of this one. */
void parity_report_unstated(Parity *parity, const char *name, double error, double tolerance);
void parity_skip(Parity *parity, const char *name, const char *why);

/* Validity of a tensor's leading axes: `axes` has a letter per axis ('R' residues, 'S' MSA rows, 'C' cluster rows, 'E'
 * extra rows, 'T' templates, '.' no mask); missing letters mean no mask. A NULL array means all valid. */
typedef struct ParityMask {
    const uint8_t *residue, *msa_row, *cluster_row, *extra_row, *templ;
} ParityMask;

/* max |a - b| over valid positions / max |b| over valid positions; NaN if a is not finite there. Shapes without the
 * batch axis. */
double parity_error(const double *a, const double *b, int rank, const int64_t *dim, const char *axes,
                    const ParityMask *mask);
/* |a - b| / |b| in l2 over all elements; `floor` is added to |b| so that gradients which are analytically zero compare
 * by their absolute size. */
double parity_l2_error(const double *a, const double *b, int64_t count, double floor);

/* parity_beside.c: keeps the values of a run, or measures their distances to those of the run that was kept. */
Status parity_beside_open(const char *save, const char *beside, ParityBeside **out);
Status parity_beside(Parity *parity, const char *name, const double *ours, const double *truth, int64_t count,
                     Arena *arena);
/* For what no golden value tells in this precision: kept, or (*done) compared with what the run that was kept has; two
 * runs within `limit` of the truth are within twice that of one another. */
Status parity_beside_instead(Parity *parity, const char *name, const double *ours, int64_t count, double floor,
                             double limit, Arena *arena, bool *done_out);
/* Writes what was saved if the run is whole, or says how the two runs and the golden values lie. */
Status parity_beside_close(ParityBeside **beside, bool whole);

/* parity_spread.c: tolerances from the errors that other runs printed. path NULL: none. limit: that of a quantity,
 * whose error is noted for the report, or `other` where the runs do not have it, or in f32 one is stated. */
Status parity_spread_open(const char *path, Precision precision, ParitySpread **out);
double parity_spread_limit(ParitySpread *spread, const char *name, double error, double other, bool stated);
void parity_spread_report(Parity *parity); /* in bf16: two lines for all quantities together */
void parity_spread_close(ParitySpread **spread);

/* A golden tensor as doubles, batch axis (leading 1) removed. Memory from the arena. */
typedef struct GoldenTensor {
    bool rounded; /* stored in float32: it can be met to half a unit of that alone */
    int rank;
    int64_t dim[TENSOR_MAX_RANK], count;
    double *value;
} GoldenTensor;
Status golden_read(const StFile *file, const char *name, bool batch_axis, Arena *arena, GoldenTensor *tensor_out);

/* The golden's slice that this rank holds of a value with tensor `local` (DAP); copies into a new array of the arena.
 */
Status golden_local_slice(const Parity *parity, const Tensor *local, const GoldenTensor *golden, Arena *arena,
                          GoldenTensor *slice_out);

/* A recorded forward program made runnable. */
typedef struct ParityRun {
    Registry *registry;
    Program *recorded, *planned;
    Store *store;
    Workspace *workspace;
    Exec *exec;
} ParityRun;
Status parity_run_build(Parity *parity, ParityRun *run); /* from run->recorded */
void parity_run_free(ParityRun *run);

/* The kinds of golden folder. */
Status parity_modules(Parity *parity, const char *dir);
Status parity_tiny(Parity *parity, const char *dir);
Status parity_full(Parity *parity, const char *dir);

/* One module golden while it is recorded (parity_modules.c; rows in parity_modules_*.c). */
typedef struct ModuleCase {
    Parity *parity;
    const StFile *file;
    Program *p;
    const char *name;
    struct {
        char name[96], axes[8];
        ParityKind kind;
    } output[32];
    int n_outputs;
    bool no_output;    /* every row is such a row */
    bool fully_masked; /* some row has no valid key: float32 and float64 differ there by design */
} ModuleCase;

/* Input "in.NAME": a parameter named "in.NAME" when the golden has its gradient, a buffer NAME otherwise. */
Val module_in(ModuleCase *c, const char *name);
int module_dim(ModuleCase *c, const char *tensor, int axis); /* extent without the batch axis */
int module_int(ModuleCase *c, const char *key);              /* metadata */
void module_out(ModuleCase *c, const char *name, Val value, ParityKind kind, const char *axes);

typedef struct ModuleRow {
    const char *name; /* file name without .safetensors; a longer file name with this prefix and "_" matches as well */
    void (*record)(ModuleCase *c);
} ModuleRow;
extern const ModuleRow parity_trunk_rows[], parity_structure_rows[]; /* end: name NULL */

#endif
