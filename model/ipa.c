/* Invariant point attention (AlphaFold2 supplement, algorithm 22). */
#include <math.h>
#include <string.h>

#include "model/layers.h"
#include "model/structure.h"

static const double IPA_INF = 1e5, NORM_EPS = 1e-8;

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
    bias = prog_add(p, OP_TRANSPOSE, 1, &bias, &(OpAttr){.i = {2, 0, 1}}); /* [H,N,N] */
    prog_full_precision(p, former);
    return bias;
}

Val structure_ipa(Program *p, const ModelConfig *config, Val s, Val z, Val pair_bias, Val frames, Val mask)
{
    LayerSpec projections[PROJECTIONS];
    projections_of(config, projections);
    bool former = prog_full_precision(p, true);
    Val head_weights = head_weights_of(p, config->sm_heads);
    Val x[PROJECTIONS], out[OP_MAX_OUT];
    layer_linear_group(p, s, PROJECTIONS, projections, x);
    Val queries = prog_add(p, OP_POINTS_TO_GLOBAL, 2, (Val[]){frames, x[2]}, NULL);
    Val points = prog_add(p, OP_POINTS_TO_GLOBAL, 2, (Val[]){frames, x[3]}, NULL);
    prog_add_multi(p, OP_IPA_ATTENTION, 7, (Val[]){x[0], x[1], queries, points, pair_bias, head_weights, mask},
                   &(OpAttr){.i = {config->sm_heads}, .f = {IPA_INF}}, out);
    Val a = out[0], o = out[1];
    Val local = prog_add(p, OP_POINTS_TO_LOCAL, 2, (Val[]){frames, out[2]}, NULL);
    Val features = prog_add(p, OP_POINT_FEATURES, 1, &local, &(OpAttr){.f = {NORM_EPS}});
    Val o_pair = prog_add(p, OP_PAIR_CONTEXT, 2, (Val[]){a, z}, NULL);
    Val all = prog_add(p, OP_CONCAT, 3, (Val[]){o, features, o_pair}, &(OpAttr){.i = {1}});
    Val update = layer_linear(p, "linear_out", all, config->c_s, LINEAR_FINAL, true);
    prog_full_precision(p, former);
    return update;
}
