/* Evaluation of whole chains: lDDT-Ca and the other metrics, spread over the ranks, longest chain first. */
#ifndef FOLDSCALE_EXPERIMENTS_EVALUATE_H
#define FOLDSCALE_EXPERIMENTS_EVALUATE_H

#include "experiments/session.h"
#include "experiments/source.h"

enum { EVALUATE_MAX_CHAINS = 1024 };

typedef struct ChainScore {
    char chain[CONFIG_NAME];
    int64_t length;
    double lddt_ca, drmsd, gdt_ts, gdt_ha, rmsd, plddt; /* Angstrom; pLDDT in 0..100 */
    double seconds;
} ChainScore;

typedef struct Evaluator Evaluator;

/* eval.chains, or all of the archive, without those longer than eval.max_length. ERR_MEMORY where the longest does not
 * fit into what is free on the device (cpu: into what it has). */
Status evaluator_create(Backend *backend, const Config *config, Evaluator **evaluator_out);
void evaluator_destroy(Evaluator **evaluator);
int evaluator_chains(const Evaluator *evaluator);

/* What to evaluate: a session's parameters (or their average), or a checkpoint. */
typedef struct Weights {
    Session *session;
    const char *checkpoint; /* when session is NULL */
    bool average;
} Weights;

/* All ranks call it together; every rank gets all scores (evaluator_chains of them). With `structures` each rank writes
 * its chains' predicted structures as CHAIN.cif into that folder. */
Status evaluator_run(Evaluator *evaluator, const Weights *weights, int64_t step, const char *structures,
                     ChainScore *scores_out);

#endif
