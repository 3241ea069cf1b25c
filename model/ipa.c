/* Invariant point attention (AlphaFold2 supplement, algorithm 22). */
#include <math.h>
#include <string.h>

#include "model/layers.h"
#include "model/structure.h"

static const double IPA_INF = 1e5, NORM_EPS = 1e-8;

static Val reshape(Program *p, Val x, int rank, const int64_t *dim)
{
    OpAttr attr = {.i = {rank}};
    for (int axis = 0; axis < rank; axis++) attr.i[1 + axis] = dim[axis];
    return prog_add(p, OP_RESHAPE, 1, &x, &attr);
}

static Val slice(Program *p, Val x, int axis, int64_t start, int64_t length)
{
    return prog_add(p, OP_SLICE, 1, &x, &(OpAttr){.i = {axis, start, length}});
}

/* x[N, H, first + second, D] -> [N, H*first(, D)] and [N, H*second(, D)]: keys come before values in each head. */
static void split_heads(Program *p, Val x, int64_t n, int64_t heads, int64_t first, int64_t second, int64_t d, Val *a,
                        Val *b)
{
    Val all = reshape(p, x, 4, (int64_t[]){n, heads, first + second, d});
    Val part[2] = {slice(p, all, 2, 0, first), slice(p, all, 2, first, second)};
    int64_t width[2] = {first, second};
    Val *out[2] = {a, b};
    for (int k = 0; k < 2; k++)
        *out[k] = d == 1 ? reshape(p, part[k], 2, (int64_t[]){n, heads * width[k]})
                         : reshape(p, part[k], 3, (int64_t[]){n, heads * width[k], d});
}

/* Weighted sum over the keys: a [H,N,N], v [N,H*D] -> [N,H*D] (algorithm 22, lines 8 and 10) */
static Val context(Program *p, Val a, Val v, int64_t n, int64_t heads, int64_t width)
{
    Val rows = reshape(p, v, 3, (int64_t[]){1, n, width});
    Val scores = reshape(p, a, 4, (int64_t[]){1, heads, n, n});
    Val o = prog_add(p, OP_ATT_CONTEXT, 2, (Val[]){scores, rows}, &(OpAttr){.i = {heads}});
    return reshape(p, o, 2, (int64_t[]){n, width});
}

enum { PROJECTIONS = 4 };

static void projections_of(const ModelConfig *config, LayerSpec *spec)
{
    const int heads = config->sm_heads, c = config->sm_c_hidden_ipa;
    const int qk = config->sm_qk_points, vp = config->sm_v_points;
    const LayerSpec projections[PROJECTIONS] = {{"linear_q", heads * c, LINEAR_LECUN, true},
                                                {"linear_kv", 2 * heads * c, LINEAR_LECUN, true},
                                                {"linear_q_points", 3 * heads * qk, LINEAR_LECUN, true},
                                                {"linear_kv_points", 3 * heads * (qk + vp), LINEAR_LECUN, true}};
    memcpy(spec, projections, sizeof projections);
}

static Val head_weights_of(Program *p, int64_t heads)
{
    return prog_param(p, "head_weights", 1, &heads, INIT_CONSTANT, log(expm1(1.0))); /* softplus^-1(1) */
}

Val structure_pair_bias(Program *p, const ModelConfig *config, Val z)
{
    LayerSpec projections[PROJECTIONS];
    projections_of(config, projections);
    bool former = prog_full_precision(p, true);
    head_weights_of(p, config->sm_heads); /* the parameters of the module stay in the order of its equations */
    layer_declare(p, config->c_s, PROJECTIONS, projections);
    Val bias = layer_linear(p, "linear_b", z, config->sm_heads, LINEAR_LECUN, true);
    prog_full_precision(p, former);
    return bias;
}

Val structure_ipa(Program *p, const ModelConfig *config, Val s, Val z, Val pair_bias, Val frames, Val mask)
{
    const int64_t n = config->n_res, heads = config->sm_heads, c = config->sm_c_hidden_ipa;
    const int64_t qk = config->sm_qk_points, vp = config->sm_v_points;
    LayerSpec projections[PROJECTIONS];
    projections_of(config, projections);
    bool former = prog_full_precision(p, true);
    Val head_weights = head_weights_of(p, heads);
    Val x[PROJECTIONS], k, v, key_points, value_points;
    layer_linear_group(p, s, PROJECTIONS, projections, x);
    split_heads(p, x[1], n, heads, c, c, 1, &k, &v);
    Val queries = prog_add(p, OP_POINTS_TO_GLOBAL, 2, (Val[]){frames, x[2]}, NULL);
    Val points = prog_add(p, OP_POINTS_TO_GLOBAL, 2, (Val[]){frames, x[3]}, NULL);
    split_heads(p, points, n, heads, qk, vp, 3, &key_points, &value_points);
    Val scores = prog_add(p, OP_IPA_SCORES, 7, (Val[]){x[0], k, queries, key_points, pair_bias, head_weights, mask},
                          &(OpAttr){.i = {heads}, .f = {IPA_INF}});
    Val a = prog_add(p, OP_SOFTMAX, 1, &scores, NULL);
    Val o = context(p, a, v, n, heads, heads * c);
    Val flat = reshape(p, value_points, 2, (int64_t[]){n, heads * vp * 3});
    Val o_points = reshape(p, context(p, a, flat, n, heads, heads * vp * 3), 3, (int64_t[]){n, heads * vp, 3});
    Val local = prog_add(p, OP_POINTS_TO_LOCAL, 2, (Val[]){frames, o_points}, NULL);
    Val features = prog_add(p, OP_POINT_FEATURES, 1, &local, &(OpAttr){.f = {NORM_EPS}});
    Val o_pair = prog_add(p, OP_PAIR_CONTEXT, 2, (Val[]){a, z}, NULL);
    Val all = prog_add(p, OP_CONCAT, 3, (Val[]){o, features, o_pair}, &(OpAttr){.i = {1}});
    Val update = layer_linear(p, "linear_out", all, config->c_s, LINEAR_FINAL, true);
    prog_full_precision(p, former);
    return update;
}
