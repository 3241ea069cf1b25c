#include "experiments/evaluate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/metrics.h"
#include "data/mmcif_write.h"
#include "data/types.h"
#include "engine/clock.h"

enum { SCORE_VALUES = 9, CA = 1 };

typedef struct EvalChain {
    char name[CONFIG_NAME];
    int64_t length;
    Batch *batch; /* kept under eval_cache */
} EvalChain;

struct Evaluator {
    Backend *backend;
    Config config; /* of the evaluation: no dropout, one rank */
    bool keep_batches;
    ChainReader *reader;
    int count;
    EvalChain *chain; /* longest first */
    Session *session; /* of the length last used */
    int64_t session_length;
    double *all;
};

static int longest_first(const void *a, const void *b)
{
    const EvalChain *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? 1 : -1;
    return strcmp(x->name, y->name);
}

static Status list_chains(Evaluator *e)
{
    Arena arena = {0};
    char **names = NULL;
    const EvalSection *eval = &e->config.eval;
    int count = (int)eval->chains_count;
    Status status = count ? OK : chain_reader_list(e->reader, &arena, &names, &count);
    if (status == OK && count > EVALUATE_MAX_CHAINS)
        status = status_fail(ERR_INPUT,
                             "too many chains to evaluate (found %d, expected at most %d: name them in "
                             "eval.chains)",
                             count, EVALUATE_MAX_CHAINS);
    if (status == OK) e->chain = calloc((size_t)count + 1, sizeof *e->chain);
    if (status == OK && !e->chain) status = status_fail(ERR_MEMORY, "out of memory for %d chains", count);
    for (int i = 0; i < count && status == OK; i++) {
        EvalChain *c = &e->chain[e->count];
        snprintf(c->name, sizeof c->name, "%s", names ? names[i] : eval->chains[i]);
        status = chain_reader_length(e->reader, c->name, &c->length);
        if (status == OK && c->length <= eval->max_length) e->count++;
    }
    if (status == OK && e->count == 0)
        status = status_fail(ERR_INPUT, "no chain to evaluate is at most eval.max_length = %d long", eval->max_length);
    arena_free(&arena);
    if (status == OK) qsort(e->chain, (size_t)e->count, sizeof *e->chain, longest_first);
    return status;
}

/* Evaluation neither drops out nor spreads a chain over ranks. */
static Config evaluation_config(const Config *config)
{
    Config c = *config;
    ModelConfig *m = &c.model.size;
    m->template_pair.dropout = m->extra_pair.dropout = m->evo_pair.dropout = 0;
    m->extra_msa_dropout = m->evo_msa_dropout = m->sm_dropout = 0;
    c.parallel.dap = 1;
    c.switches.cuda_graph = false; /* a graph would be captured for every length */
    if (c.eval.chains_count == 0) {
        memcpy(c.eval.chains, c.data.chains, sizeof c.eval.chains);
        c.eval.chains_count = c.data.chains_count;
    }
    return c;
}

/* Not enough memory for the longest chain is said now, not at the first evaluation. */
static Status foresee(const Evaluator *e)
{
    Config longest = e->config;
    longest.model.size.n_res = (int)e->chain[0].length;
    snprintf(longest.name, sizeof longest.name, "%.80s, evaluation of %d residues", e->config.name,
             longest.model.size.n_res);
    return session_foresee(e->backend, &longest, false);
}

Status evaluator_create(Backend *backend, const Config *config, Evaluator **evaluator_out)
{
    Evaluator *e = calloc(1, sizeof *e);
    if (!e) return status_fail(ERR_MEMORY, "out of memory for the evaluation");
    e->backend = backend;
    e->config = evaluation_config(config);
    e->keep_batches = config->switches.eval_cache;
    Status status = chain_reader_open(&e->config, &e->reader);
    if (status == OK) status = list_chains(e);
    if (status == OK) status = foresee(e);
    if (status == OK) {
        e->all = calloc((size_t)backend->layout.world * (size_t)e->count * SCORE_VALUES, sizeof *e->all);
        if (!e->all) status = status_fail(ERR_MEMORY, "out of memory for the evaluation");
    }
    if (status == OK)
        *evaluator_out = e;
    else
        evaluator_destroy(&e);
    return status;
}

void evaluator_destroy(Evaluator **evaluator)
{
    Evaluator *e = *evaluator;
    if (!e) return;
    for (int i = 0; e->chain && i < e->count; i++)
        if (e->chain[i].batch) batch_destroy(&e->chain[i].batch);
    session_destroy(&e->session);
    chain_reader_close(&e->reader);
    free(e->chain);
    free(e->all);
    free(e);
    *evaluator = NULL;
}

int evaluator_chains(const Evaluator *evaluator)
{
    return evaluator->count;
}

/* A session whose crop is this length, with the weights. */
static Status prepare_session(Evaluator *e, const Weights *weights, int64_t length, bool fresh)
{
    if (e->session && e->session_length == length && !fresh) return OK;
    if (!e->session || e->session_length != length) {
        session_destroy(&e->session);
        e->config.model.size.n_res = (int)length;
        TRY(session_create(e->backend, &e->config, false, false, &e->session));
        e->session_length = length;
    }
    if (weights->session) return session_copy_params(weights->session, weights->average, e->session);
    return store_load(e->session->store, weights->checkpoint, weights->average);
}

typedef struct Prediction {
    float *positions; /* [L, 37, 3] */
    float *plddt;     /* [L] */
} Prediction;

static Status compare(const EvalChain *chain, const Batch *batch, const Prediction *p, ChainScore *score)
{
    int64_t n = chain->length;
    const float *truth = batch_f32(batch, FEAT_ALL_ATOM_POSITIONS, 0), *there = batch_f32(batch, FEAT_ALL_ATOM_MASK, 0);
    double *predicted = calloc((size_t)n * 6, sizeof *predicted), *target = predicted ? predicted + 3 * n : NULL;
    uint8_t *mask = calloc((size_t)n + 1, 1);
    StructureMetrics m;
    Status status = predicted && mask ? OK : status_fail(ERR_MEMORY, "%s: out of memory", chain->name);
    double sum = 0;
    for (int64_t i = 0; status == OK && i < n; i++) {
        int64_t atom = i * ATOM37_COUNT + CA;
        mask[i] = there[atom] > 0.5f;
        sum += p->plddt[i];
        for (int a = 0; a < 3; a++) {
            predicted[3 * i + a] = p->positions[3 * atom + a];
            target[3 * i + a] = truth[3 * atom + a];
        }
    }
    if (status == OK) status = metrics_compare(predicted, target, mask, n, NULL, &m);
    if (status == OK) {
        score->lddt_ca = m.lddt_ca;
        score->drmsd = m.drmsd;
        score->rmsd = m.rmsd;
        score->gdt_ts = m.gdt_ts;
        score->gdt_ha = m.gdt_ha;
        score->plddt = sum / (double)n;
    }
    free(predicted);
    free(mask);
    return status;
}

static Status write_structure(const EvalChain *chain, const Batch *batch, const Prediction *p, const char *folder)
{
    char path[4096];
    const char *underscore = strrchr(chain->name, '_');
    snprintf(path, sizeof path, "%s/%s.cif", folder, chain->name);
    const MmcifChain predicted = {.name = chain->name,
                                  .chain_id = underscore && underscore[1] ? underscore + 1 : "A",
                                  .length = chain->length,
                                  .aatype = batch_i32(batch, FEAT_AATYPE, 0),
                                  .positions = p->positions,
                                  .atom_exists = batch_f32(batch, FEAT_ATOM37_ATOM_EXISTS, 0),
                                  .plddt = p->plddt};
    return mmcif_write_chain(path, &predicted);
}

static Status predict(Evaluator *e, const EvalChain *chain, const Batch *batch, int64_t step, Prediction *p)
{
    int64_t n = chain->length;
    Exec *exec;
    TRY(session_forward(e->session, batch, step, e->config.eval.recycling));
    exec = e->session->exec[SESSION_NOGRAD];
    TRY(exec_output(exec, "out.final_atom_positions", DT_F32, p->positions, n * ATOM37_COUNT * 3));
    return exec_output(exec, "out.plddt", DT_F32, p->plddt, n);
}

static Status evaluate_chain(Evaluator *e, EvalChain *chain, const Weights *weights, bool fresh, int64_t step,
                             const char *structures, ChainScore *score)
{
    double start = clock_now_s();
    Batch *batch = chain->batch;
    TRY(prepare_session(e, weights, chain->length, fresh));
    if (!batch) TRY(chain_reader_batch(e->reader, chain->name, chain->length, e->config.eval.recycling, &batch));
    Prediction p = {calloc((size_t)chain->length * ATOM37_COUNT * 3, sizeof(float)),
                    calloc((size_t)chain->length, sizeof(float))};
    Status status = p.positions && p.plddt ? OK : status_fail(ERR_MEMORY, "%s: out of memory", chain->name);
    if (status == OK) status = predict(e, chain, batch, step, &p);
    if (status == OK) status = compare(chain, batch, &p, score);
    if (status == OK && structures) status = write_structure(chain, batch, &p, structures);
    free(p.positions);
    free(p.plddt);
    if (e->keep_batches && status == OK)
        chain->batch = batch;
    else if (!chain->batch)
        batch_destroy(&batch);
    score->seconds = clock_now_s() - start;
    return status;
}

static void pack_score(const ChainScore *s, double *v)
{
    const double values[SCORE_VALUES] = {1,         s->lddt_ca, s->drmsd,   s->rmsd,          s->gdt_ts,
                                         s->gdt_ha, s->plddt,   s->seconds, (double)s->length};
    memcpy(v, values, sizeof values);
}

static void unpack_score(const double *v, ChainScore *s)
{
    s->lddt_ca = v[1];
    s->drmsd = v[2];
    s->rmsd = v[3];
    s->gdt_ts = v[4];
    s->gdt_ha = v[5];
    s->plddt = v[6];
    s->seconds = v[7];
    s->length = (int64_t)v[8];
}

Status evaluator_run(Evaluator *evaluator, const Weights *weights, int64_t step, const char *structures,
                     ChainScore *scores_out)
{
    Evaluator *e = evaluator;
    int world = e->backend->layout.world, rank = e->backend->layout.rank, width = e->count * SCORE_VALUES;
    double *mine = calloc((size_t)width, sizeof *mine);
    if (!mine) return status_fail(ERR_MEMORY, "out of memory for the evaluation");
    Status status = OK;
    bool fresh = true; /* the weights have changed since the last evaluation */
    for (int i = rank; i < e->count && status == OK; i += world) {
        ChainScore score = {.length = e->chain[i].length};
        status = evaluate_chain(e, &e->chain[i], weights, fresh, step, structures, &score);
        pack_score(&score, mine + i * SCORE_VALUES);
        fresh = false;
    }
    if (status == OK) status = e->backend->host_all_gather(e->backend, mine, width, e->all);
    free(mine);
    for (int i = 0; i < e->count && status == OK; i++) {
        const double *row = e->all + (size_t)(i % world) * (size_t)width + (size_t)i * SCORE_VALUES;
        snprintf(scores_out[i].chain, sizeof scores_out[i].chain, "%s", e->chain[i].name);
        unpack_score(row, &scores_out[i]);
    }
    return status;
}
