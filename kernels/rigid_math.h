/* Rotations of the structure module. A frame is a quaternion (w, x, y, z) and a translation; its matrix is the
 * quadratic form R = [[w2+x2-y2-z2, 2(xy-wz), 2(xz+wy)], [2(xy+wz), w2-x2+y2-z2, 2(yz-wx)], [2(xz-wy), 2(yz+wx),
 * w2-x2-y2+z2]], not renormalised, and gradients are those of this polynomial. Matrices are row-major. */
#ifndef FOLDSCALE_KERNELS_RIGID_MATH_H
#define FOLDSCALE_KERNELS_RIGID_MATH_H

/* Shared by the CPU and the CUDA kernels: the includer defines `real`, the type of stored numbers; the arithmetic is in
 * double on both. */
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define RIGID_INLINE static __host__ __device__ inline
#else
#define RIGID_INLINE static inline
#endif

RIGID_INLINE void rot_from_quat(const double *q, double *r)
{
    double w = q[0], x = q[1], y = q[2], z = q[3];
    r[0] = w * w + x * x - y * y - z * z;
    r[1] = 2 * (x * y - w * z);
    r[2] = 2 * (x * z + w * y);
    r[3] = 2 * (x * y + w * z);
    r[4] = w * w - x * x + y * y - z * z;
    r[5] = 2 * (y * z - w * x);
    r[6] = 2 * (x * z - w * y);
    r[7] = 2 * (y * z + w * x);
    r[8] = w * w - x * x - y * y + z * z;
}

/* dq += (d R / d q)^T g */
RIGID_INLINE void rot_from_quat_bwd(const double *q, const double *g, double *dq)
{
    double w = q[0], x = q[1], y = q[2], z = q[3];
    double xy = g[1] + g[3], xz = g[2] + g[6], yz = g[5] + g[7];
    double ax = g[7] - g[5], ay = g[2] - g[6], az = g[3] - g[1];
    dq[0] += 2 * (w * (g[0] + g[4] + g[8]) + x * ax + y * ay + z * az);
    dq[1] += 2 * (x * (g[0] - g[4] - g[8]) + y * xy + z * xz + w * ax);
    dq[2] += 2 * (y * (-g[0] + g[4] - g[8]) + x * xy + z * yz + w * ay);
    dq[3] += 2 * (z * (-g[0] - g[4] + g[8]) + x * xz + y * yz + w * az);
}

/* y = R v */
RIGID_INLINE void rot_apply(const double *r, const double *v, double *y)
{
    for (int a = 0; a < 3; a++) y[a] = r[3 * a] * v[0] + r[3 * a + 1] * v[1] + r[3 * a + 2] * v[2];
}

/* y = R^T v */
RIGID_INLINE void rot_apply_t(const double *r, const double *v, double *y)
{
    for (int a = 0; a < 3; a++) y[a] = r[a] * v[0] + r[3 + a] * v[1] + r[6 + a] * v[2];
}

/* g += a b^T */
RIGID_INLINE void rot_add_outer(double *g, const double *a, const double *b)
{
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) g[3 * i + j] += a[i] * b[j];
}

/* c = A B, A^T B, A B^T */
RIGID_INLINE void rot_mul(const double *a, const double *b, double *c)
{
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) c[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
}
RIGID_INLINE void rot_mul_tn(const double *a, const double *b, double *c)
{
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) c[3 * i + j] = a[i] * b[j] + a[3 + i] * b[3 + j] + a[6 + i] * b[6 + j];
}
RIGID_INLINE void rot_add_mul_nt(const double *a, const double *b, double *c)
{
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            c[3 * i + j] += a[3 * i] * b[3 * j] + a[3 * i + 1] * b[3 * j + 1] + a[3 * i + 2] * b[3 * j + 2];
}

/* A rigid transform as 12 numbers: rotation, then translation. */
typedef struct Rigid {
    double r[9], t[3];
} Rigid;

RIGID_INLINE Rigid rigid_from_frame(const real *frame)
{
    double q[4];
    Rigid x;
    for (int k = 0; k < 4; k++) q[k] = frame[k];
    rot_from_quat(q, x.r);
    for (int a = 0; a < 3; a++) x.t[a] = frame[4 + a];
    return x;
}

/* df = gradient with respect to the frame, g that with respect to its transform */
RIGID_INLINE void rigid_to_frame_bwd(const real *frame, const Rigid *g, real *df)
{
    double q[4], dq[4] = {0};
    for (int k = 0; k < 4; k++) q[k] = frame[k];
    rot_from_quat_bwd(q, g->r, dq);
    for (int k = 0; k < 4; k++) df[k] = (real)dq[k];
    for (int a = 0; a < 3; a++) df[4 + a] = (real)g->t[a];
}

RIGID_INLINE void vector_load(const real *x, double *out)
{
    for (int a = 0; a < 3; a++) out[a] = x[a];
}
RIGID_INLINE void vector_store(const double *x, real *out)
{
    for (int a = 0; a < 3; a++) out[a] = (real)x[a];
}

RIGID_INLINE Rigid rigid_from_4x4(const real *m)
{
    Rigid x;
    for (int a = 0; a < 3; a++) {
        for (int b = 0; b < 3; b++) x.r[3 * a + b] = m[4 * a + b];
        x.t[a] = m[4 * a + 3];
    }
    return x;
}

RIGID_INLINE void rigid_to_4x4(const Rigid *x, real *m)
{
    for (int a = 0; a < 3; a++) {
        for (int b = 0; b < 3; b++) m[4 * a + b] = (real)x->r[3 * a + b];
        m[4 * a + 3] = (real)x->t[a];
        m[12 + a] = 0;
    }
    m[15] = 1;
}

/* a after b: x -> A (B x + tb) + ta */
RIGID_INLINE Rigid rigid_compose(const Rigid *a, const Rigid *b)
{
    Rigid c;
    rot_mul(a->r, b->r, c.r);
    rot_apply(a->r, b->t, c.t);
    for (int k = 0; k < 3; k++) c.t[k] += a->t[k];
    return c;
}

/* da += and db = gradients of c = a after b, given dc */
RIGID_INLINE void rigid_compose_bwd(const Rigid *a, const Rigid *b, const Rigid *dc, Rigid *da, Rigid *db)
{
    rot_add_mul_nt(dc->r, b->r, da->r);
    rot_add_outer(da->r, dc->t, b->t);
    for (int k = 0; k < 3; k++) da->t[k] += dc->t[k];
    rot_mul_tn(a->r, dc->r, db->r);
    rot_apply_t(a->r, dc->t, db->t);
}

/* q + q (0, b, c, d) with (b, c, d) = u, not normalised; returns its length (algorithm 23) */
RIGID_INLINE double quat_updated(const real *q, const real *u, double *out)
{
    double w = q[0], x = q[1], y = q[2], z = q[3], b = u[0], c = u[1], d = u[2];
    out[0] = w - x * b - y * c - z * d;
    out[1] = x + w * b + y * d - z * c;
    out[2] = y + w * c + z * b - x * d;
    out[3] = z + w * d + x * c - y * b;
    return sqrt(out[0] * out[0] + out[1] * out[1] + out[2] * out[2] + out[3] * out[3]);
}

/* y = frame f moved by the update u [6]: quaternion part, then translation in the old frame (algorithm 23) */
RIGID_INLINE void frame_update(const real *f, const real *u, real *y)
{
    double q[4], step[3], move[3], norm = quat_updated(f, u, q);
    Rigid old = rigid_from_frame(f); /* the old rotation moves the translation */
    vector_load(u + 3, step);
    rot_apply(old.r, step, move);
    for (int k = 0; k < 4; k++) y[k] = (real)(q[k] / norm);
    for (int k = 0; k < 3; k++) y[4 + k] = (real)(old.t[k] + move[k]);
}

/* df and du = gradients of frame_update, given dy */
RIGID_INLINE void frame_update_bwd(const real *dy, const real *f, const real *u, real *df, real *du)
{
    double p[4], d[4], step[3], moved[3], dstep[3], dot = 0, norm = quat_updated(f, u, p);
    Rigid old = rigid_from_frame(f), g = {{0}, {0}};
    vector_load(u + 3, step);
    vector_load(dy + 4, moved);
    rot_add_outer(g.r, moved, step);
    vector_load(dy + 4, g.t);
    rigid_to_frame_bwd(f, &g, df);
    rot_apply_t(old.r, moved, dstep);
    vector_store(dstep, du + 3);
    for (int k = 0; k < 4; k++) dot += p[k] / norm * (double)dy[k];
    for (int k = 0; k < 4; k++) d[k] = ((double)dy[k] - p[k] / norm * dot) / norm;
    df[0] += (real)(d[0] + u[0] * d[1] + u[1] * d[2] + u[2] * d[3]);
    df[1] += (real)(d[1] - u[0] * d[0] - u[2] * d[2] + u[1] * d[3]);
    df[2] += (real)(d[2] - u[1] * d[0] + u[2] * d[1] - u[0] * d[3]);
    df[3] += (real)(d[3] - u[2] * d[0] - u[1] * d[1] + u[0] * d[2]);
    du[0] = (real)(-f[1] * d[0] + f[0] * d[1] + f[3] * d[2] - f[2] * d[3]);
    du[1] = (real)(-f[2] * d[0] - f[3] * d[1] + f[0] * d[2] + f[1] * d[3]);
    du[2] = (real)(-f[3] * d[0] + f[2] * d[1] - f[1] * d[2] + f[0] * d[3]);
}

/* y [3] = f x, x with `stride` between its coordinates */
RIGID_INLINE void point_to_global(const Rigid *f, const real *x, int64_t stride, real *y)
{
    double v[3] = {x[0], x[stride], x[2 * stride]}, moved[3];
    rot_apply(f->r, v, moved);
    for (int a = 0; a < 3; a++) moved[a] += f->t[a];
    vector_store(moved, y);
}

/* dx = and g += gradients of point_to_global, given dy; g with respect to the transform */
RIGID_INLINE void point_to_global_bwd(const Rigid *f, const real *dy, const real *x, int64_t stride, real *dx, Rigid *g)
{
    double v[3] = {x[0], x[stride], x[2 * stride]}, grad[3], d[3];
    vector_load(dy, grad);
    rot_apply_t(f->r, grad, d);
    rot_add_outer(g->r, grad, v);
    for (int a = 0; a < 3; a++) {
        dx[a * stride] = (real)d[a];
        g->t[a] += grad[a];
    }
}

/* y [3] = f^-1 x */
RIGID_INLINE void point_to_local(const Rigid *f, const real *x, real *y)
{
    double v[3], moved[3];
    for (int a = 0; a < 3; a++) v[a] = x[a] - f->t[a];
    rot_apply_t(f->r, v, moved);
    vector_store(moved, y);
}

/* dx = and g += gradients of point_to_local, given dy */
RIGID_INLINE void point_to_local_bwd(const Rigid *f, const real *dy, const real *x, real *dx, Rigid *g)
{
    double v[3], grad[3], d[3];
    for (int a = 0; a < 3; a++) v[a] = x[a] - f->t[a];
    vector_load(dy, grad);
    rot_apply(f->r, grad, d);
    rot_add_outer(g->r, v, grad);
    for (int a = 0; a < 3; a++) g->t[a] -= d[a];
    vector_store(d, dx);
}

/* y = (sin, cos) x over its length, at least sqrt(eps) (algorithm 20) */
RIGID_INLINE void angle_normalize(const real *x, double eps, real *y)
{
    double v[2] = {x[0], x[1]}, s = v[0] * v[0] + v[1] * v[1], norm = sqrt(s > eps ? s : eps);
    for (int k = 0; k < 2; k++) y[k] = (real)(v[k] / norm);
}

RIGID_INLINE void angle_normalize_bwd(const real *dy, const real *x, double eps, real *dx)
{
    double v[2] = {x[0], x[1]}, d[2] = {dy[0], dy[1]}, s = v[0] * v[0] + v[1] * v[1];
    double norm = sqrt(s > eps ? s : eps);
    double along = s >= eps ? (v[0] * d[0] + v[1] * d[1]) / s : 0; /* below eps the divisor is constant */
    for (int k = 0; k < 2; k++) dx[k] = (real)((d[k] - v[k] * along) / norm);
}

/* sqrt(|a - b|^2 + eps) */
RIGID_INLINE double point_distance(const real *a, const real *b, double eps)
{
    double x = (double)a[0] - b[0], y = (double)a[1] - b[1], z = (double)a[2] - b[2];
    return sqrt(eps + (x * x + y * y + z * z));
}

#endif
