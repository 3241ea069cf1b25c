#ifndef FOLDSCALE_KERNELS_CPU_BACKEND_H
#define FOLDSCALE_KERNELS_CPU_BACKEND_H

#include "kernels/kernels.h"

Status cpu_backend_open(const KernelOptions *options, Backend **backend_out);

#endif
