/* Synthetic chains with alignments and template hits, written in the layouts that real data has:
 *
 *     FOLDER/mmcif/<id>.cif    FOLDER/alignments/<id>_A/{uniref90_hits,bfd_uniclust_hits,mgnify_hits}.a3m
 *                              FOLDER/alignments/<id>_A/pdb70_hits.hhr
 *
 * Everything is a function of (seed, number of the chain). Distributions:
 *   length      log-normal, clamped. PDB chains: median about 250, sigma 0.6 (a few per cent above 700).
 *   MSA depth   rows of all three databases together, log-normal, clamped; the defaults (median 1,500, sigma 1.7) span
 *               three orders of magnitude between the 2 % and the 98 % quantile, as published training sets do; so
 *               does, with length x depth, the preparation time. 60 % of the rows are uniref90, 30 % bfd, 10 % mgnify.
 *   rows        each has an identity to the query uniform in 0.25..0.95; other letters from the background of
 *               UniProt; ends missing at both sides (exponential, mean 6 % of the length each); internal gaps opened at
 *               1 % of the positions and insertions at 0.7 %, of geometric length (mean 3).
 *   structure   ideal bond lengths and angles, helices, strands and coils in turn, side chains at random rotamers,
 *               placed with the rigid-group tables; the chain may run through itself. 4 % of the residues unresolved.
 *   date        chain n is released 61 days after chain n - 1 on a calendar from 1980 on, cyclic over 240 chains.
 *   hits        to older chains of the same set: a random stretch of the template against one of the query. */
#ifndef FOLDSCALE_DATA_SYNTH_H
#define FOLDSCALE_DATA_SYNTH_H

#include "data/types.h"

typedef struct SynthOptions {
    const char *folder; /* created if missing */
    uint64_t seed;
    int64_t chains; /* at most 46,656 x 9 */
    double length_median, length_sigma;
    int64_t length_min, length_max;
    double depth_median, depth_sigma;
    int64_t depth_min, depth_max;
    int hits; /* template hits per chain, as far as there are older chains; at most 200 */
    int threads;
    /* Called after each chain by any thread, one call at a time; may be NULL. */
    void (*progress)(void *context, int64_t done, int64_t chains);
    void *progress_context;
} SynthOptions;

/* 250 residues, sigma 0.6, 30..2000; 1,500 rows, sigma 1.7, 1..50,000; 20 hits. */
SynthOptions synth_options_default(void);

/* Writes everything. ERR_USAGE for options out of range, ERR_IO. */
Status synth_write(const SynthOptions *options);

/* "9aab_A" of chain n. */
void synth_name(int64_t chain, char name_out[8]);
int64_t synth_length(const SynthOptions *options, int64_t chain);
int64_t synth_depth(const SynthOptions *options, int64_t chain);

#endif
