/* A machine as the model sees it: rates of one device, links inside a node, network between nodes. Read from YAML files
 * in experiments/machines; every figure says where it comes from. */
#ifndef FOLDSCALE_ANALYSIS_MACHINE_H
#define FOLDSCALE_ANALYSIS_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/status.h"

typedef struct Figure {
    double value;
    double spread; /* relative standard deviation; 0 in the file: unknown, taken as FIGURE_SPREAD */
    char *source;  /* measurement, data sheet, reference */
} Figure;

#define FIGURE_SPREAD 0.05

typedef enum MachineKind { MACHINE_CPU, MACHINE_GPU } MachineKind;
typedef enum Fabric { FABRIC_NVLINK, FABRIC_PCIE, FABRIC_SHARED_MEMORY } Fabric;

typedef enum Collective {
    COLLECTIVE_ALL_REDUCE,
    COLLECTIVE_ALL_GATHER,
    COLLECTIVE_REDUCE_SCATTER,
    COLLECTIVE_ALL_TO_ALL,
    COLLECTIVE_BROADCAST,
    COLLECTIVE_COUNT
} Collective;

extern const char *const COLLECTIVE_NAMES[COLLECTIVE_COUNT]; /* "all_reduce", ... */

typedef struct MachineDevice {
    char *model; /* as the driver names it */
    Figure memory_bytes;
    Figure copy_bytes_per_s; /* achieved by a device copy, read + write */
    Figure bf16_flops;       /* achieved by large products; 0: the device has no such unit */
    Figure f32_flops;
    Figure f64_flops;      /* optional */
    Figure launch_s;       /* gap per kernel launched by the host */
    Figure graph_launch_s; /* gap per kernel inside a captured graph */
} MachineDevice;

typedef struct MachineNode {
    int64_t devices;
    Fabric fabric;
    Figure link_bytes_per_s;   /* of one device into the fabric, all its links, one direction */
    bool nvls;                 /* reductions in the switch */
    Figure collective_floor_s; /* no collective issued by the host is faster; shrinks to graph_launch_s in a graph */
    Figure overlap; /* share of a collective that as much computation beside it hides (optional; 1: all of it) */
} MachineNode;

typedef struct MachineNetwork {
    int64_t nodes;           /* 1: no network */
    int64_t rails;           /* network cards of a node */
    Figure rail_bytes_per_s; /* of one card, one direction, as data (after encoding) */
    Figure latency_s;        /* one way, added to each hop between nodes on top of the library's own overhead */
    Figure oversubscription; /* 1: full bisection */
} MachineNetwork;

/* A measured collective. `bytes` is the whole tensor: what all-reduce works on, what all-gather produces, what
 * reduce-scatter takes, what one rank holds before all-to-all. */
typedef struct MachineSample {
    Collective collective;
    int64_t ranks;
    double bytes;
    double time_s;
    bool graph; /* measured inside a captured graph: without the host's launches */
} MachineSample;

/* Corrections of the collective model, fitted on samples (collective_calibrate). */
typedef struct CollectiveFit {
    double log_latency, log_wire; /* multipliers of the model's latency and bandwidth terms */
    double floor_s;
    double sd;   /* of log residuals */
    int samples; /* 0: not measured on this machine */
} CollectiveFit;

typedef struct Machine {
    char *name;
    char *description;
    MachineKind kind;
    MachineDevice device;
    MachineNode node;
    MachineNetwork network;
    Figure rank_noise;        /* relative standard deviation of one rank's step time */
    char *collectives_source; /* of the samples */
    MachineSample *sample;
    unsigned samples;
    /* not in the file */
    CollectiveFit fit[2][COLLECTIVE_COUNT]; /* launched by the host, from a graph */
    char *file;
} Machine;

/* Reads and checks a file; ranges and contradictions (links without neighbours, a network without cards, a measured
 * collective faster than the links it crosses) are refused with their line. Runs collective_calibrate when the file has
 * samples. */
Status machine_read(const char *path, Machine **machine_out);
void machine_destroy(Machine **machine);

/* Writes the file back (calibrate). */
Status machine_write(const Machine *machine, const char *path);

/* Devices in all. */
int64_t machine_devices(const Machine *machine);

#endif
