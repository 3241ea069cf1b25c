/* run.json: what was run, where, with what. */
#ifndef FOLDSCALE_EXPERIMENTS_PROVENANCE_H
#define FOLDSCALE_EXPERIMENTS_PROVENANCE_H

#include "engine/backend.h"
#include "experiments/config.h"

/* What one run of a planned program costs a rank (op table). */
typedef struct ProgramFacts {
    const char *name; /* "nograd", "grad", "optimizer" */
    int ops;
    double flops, bytes, wire_bytes, arena_bytes;
} ProgramFacts;

enum { PROVENANCE_PROGRAMS = 4 };

typedef struct RunFacts {
    int programs;
    ProgramFacts program[PROVENANCE_PROGRAMS];
    int argc;
    char **argv;
    const Config *config;
    const Backend *backend;
    int64_t parameters;                  /* of the model */
    double store_bytes, workspace_bytes; /* of one rank */
    double prepare_s;                    /* recording and passes */
    int64_t resumed_from;                /* step, -1: from the start */
} RunFacts;

/* Writes PATH whole or not at all. */
Status provenance_write(const char *path, const RunFacts *facts);
/* 16 hexadecimal digits: FNV-1a 64 of the file's bytes. */
Status provenance_hash(const char *path, char hash_out[17]);

#endif
