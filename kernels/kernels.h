/* Opens a backend by name. Nothing outside kernels/ sees a type of MPI, OpenBLAS or CUDA. */
#ifndef FOLDSCALE_KERNELS_KERNELS_H
#define FOLDSCALE_KERNELS_KERNELS_H

#include "engine/backend.h"

typedef struct KernelOptions {
    int dap;         /* ranks per model-parallel group; must divide the number of ranks */
    int threads;     /* CPU threads of this rank; 0 = OMP_NUM_THREADS, else cores / ranks on this host */
    bool no_comm;    /* leave collectives out: time one rank's share of a DAP n step alone (dap is taken as given) */
    uint64_t dither; /* cpu: what ops compute is rounded up or down at random, by its distance to either, drawn from
                        this seed, in bf16 programs to bf16, in f64 ones to f32 (its digits, not its range): a sample
                        of what rounding may do to a program; 0 = to nearest even, in f64 not at all */
    const char *tune_cache; /* file with measured GEMM choices (cuda), or NULL */
} KernelOptions;

/* name "cpu" or "cuda". ERR_USAGE: unknown name, dap that does not divide the ranks; ERR_UNSUPPORTED: built without it
 * or no device; ERR_COMM: MPI or NCCL refused. Starts MPI if the process was launched under it (or always, singleton).
 */
Status kernels_open(const char *name, const KernelOptions *options, Backend **backend_out);
void kernels_close(Backend **backend);

/* For main(), when this rank has failed and reported why, before it closes anything: takes the whole job down, since
 * the other ranks would wait for this one for ever, and does not return. Alone it does nothing: close and finalize. */
void kernels_abort(int exit_code);
/* Whether a rank that ends with this status may close what lives on the backend, and the backend (NULL: not open). One
 * of several that failed may not: to free memory or a communicator is to wait for what the others have stopped doing.
 * It leaves all as it is, and its main() calls kernels_abort. */
bool kernels_may_close(const Backend *backend, Status status);
/* For main(), before a normal exit: nothing may be opened afterwards. Without MPI it does nothing. */
void kernels_finalize(void);

#endif
