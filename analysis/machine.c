#include "analysis/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/collective.h"
#include "analysis/yamlfile.h"
#include "engine/output.h"

const char *const COLLECTIVE_NAMES[COLLECTIVE_COUNT] = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all",
                                                        "broadcast"};

/* --- the schema of a file ----------------------------------------------------------------------------------------- */

static const cyaml_strval_t KINDS[] = {{"cpu", MACHINE_CPU}, {"gpu", MACHINE_GPU}};
static const cyaml_strval_t FABRICS[] = {
    {"nvlink", FABRIC_NVLINK}, {"pcie", FABRIC_PCIE}, {"shared_memory", FABRIC_SHARED_MEMORY}};
static const cyaml_strval_t COLLECTIVES[] = {{"all_reduce", COLLECTIVE_ALL_REDUCE},
                                             {"all_gather", COLLECTIVE_ALL_GATHER},
                                             {"reduce_scatter", COLLECTIVE_REDUCE_SCATTER},
                                             {"all_to_all", COLLECTIVE_ALL_TO_ALL},
                                             {"broadcast", COLLECTIVE_BROADCAST}};

static const cyaml_schema_field_t FIGURE_FIELDS[] = {
    CYAML_FIELD_FLOAT("value", CYAML_FLAG_DEFAULT, Figure, value),
    CYAML_FIELD_FLOAT("spread", CYAML_FLAG_OPTIONAL, Figure, spread),
    CYAML_FIELD_STRING_PTR("source", CYAML_FLAG_POINTER, Figure, source, 1, 400), CYAML_FIELD_END};

#define FIGURE(type, member)   CYAML_FIELD_MAPPING(#member, CYAML_FLAG_DEFAULT, type, member, FIGURE_FIELDS)
#define OPTIONAL(type, member) CYAML_FIELD_MAPPING(#member, CYAML_FLAG_OPTIONAL, type, member, FIGURE_FIELDS)

static const cyaml_schema_field_t DEVICE_FIELDS[] = {
    CYAML_FIELD_STRING_PTR("model", CYAML_FLAG_POINTER, MachineDevice, model, 1, 200),
    FIGURE(MachineDevice, memory_bytes),
    FIGURE(MachineDevice, copy_bytes_per_s),
    OPTIONAL(MachineDevice, bf16_flops),
    FIGURE(MachineDevice, f32_flops),
    OPTIONAL(MachineDevice, f64_flops),
    FIGURE(MachineDevice, launch_s),
    OPTIONAL(MachineDevice, graph_launch_s),
    CYAML_FIELD_END};

static const cyaml_schema_field_t NODE_FIELDS[] = {
    CYAML_FIELD_INT("devices", CYAML_FLAG_DEFAULT, MachineNode, devices),
    CYAML_FIELD_ENUM("fabric", CYAML_FLAG_DEFAULT, MachineNode, fabric, FABRICS, CYAML_ARRAY_LEN(FABRICS)),
    OPTIONAL(MachineNode, link_bytes_per_s),
    CYAML_FIELD_BOOL("nvls", CYAML_FLAG_OPTIONAL, MachineNode, nvls),
    OPTIONAL(MachineNode, collective_floor_s),
    OPTIONAL(MachineNode, overlap),
    CYAML_FIELD_END};

static const cyaml_schema_field_t NETWORK_FIELDS[] = {
    CYAML_FIELD_INT("nodes", CYAML_FLAG_DEFAULT, MachineNetwork, nodes),
    CYAML_FIELD_INT("rails", CYAML_FLAG_OPTIONAL, MachineNetwork, rails),
    OPTIONAL(MachineNetwork, rail_bytes_per_s),
    OPTIONAL(MachineNetwork, latency_s),
    OPTIONAL(MachineNetwork, oversubscription),
    CYAML_FIELD_END};

static const cyaml_schema_field_t SAMPLE_FIELDS[] = {
    CYAML_FIELD_ENUM("collective", CYAML_FLAG_DEFAULT, MachineSample, collective, COLLECTIVES,
                     CYAML_ARRAY_LEN(COLLECTIVES)),
    CYAML_FIELD_INT("ranks", CYAML_FLAG_DEFAULT, MachineSample, ranks),
    CYAML_FIELD_FLOAT("bytes", CYAML_FLAG_DEFAULT, MachineSample, bytes),
    CYAML_FIELD_FLOAT("time_s", CYAML_FLAG_DEFAULT, MachineSample, time_s),
    CYAML_FIELD_BOOL("graph", CYAML_FLAG_OPTIONAL, MachineSample, graph),
    CYAML_FIELD_END};

static const cyaml_schema_value_t SAMPLE_VALUE = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, MachineSample, SAMPLE_FIELDS)};

static const cyaml_schema_field_t MACHINE_FIELDS[] = {
    CYAML_FIELD_STRING_PTR("name", CYAML_FLAG_POINTER, Machine, name, 1, 80),
    CYAML_FIELD_STRING_PTR("description", CYAML_FLAG_POINTER, Machine, description, 1, 600),
    CYAML_FIELD_ENUM("kind", CYAML_FLAG_DEFAULT, Machine, kind, KINDS, CYAML_ARRAY_LEN(KINDS)),
    CYAML_FIELD_MAPPING("device", CYAML_FLAG_DEFAULT, Machine, device, DEVICE_FIELDS),
    CYAML_FIELD_MAPPING("node", CYAML_FLAG_DEFAULT, Machine, node, NODE_FIELDS),
    CYAML_FIELD_MAPPING("network", CYAML_FLAG_DEFAULT, Machine, network, NETWORK_FIELDS),
    FIGURE(Machine, rank_noise),
    CYAML_FIELD_STRING_PTR("collectives_source", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, Machine, collectives_source,
                           1, 400),
    CYAML_FIELD_SEQUENCE_COUNT("collectives", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, Machine, sample, samples,
                               &SAMPLE_VALUE, 0, 10000),
    CYAML_FIELD_END};

static const cyaml_schema_value_t MACHINE_SCHEMA = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, Machine, MACHINE_FIELDS)};

/* --- checks ---------------------------------------------------------------------------------------------------------
 */

static Status refuse(const char *path, const char *key, const char *what)
{
    return status_fail_at(ERR_INPUT, path, yamlfile_line_of(path, key), "%s: %s", key, what);
}

/* A figure in [low, high]; `needed` figures must be there. */
static Status check_figure(const char *path, const char *key, Figure *figure, double low, double high, bool needed)
{
    char what[200];
    if (!figure->source && !needed && figure->value == 0) return OK;
    if (!figure->source || !*figure->source) return refuse(path, key, "missing (expected a value with its source)");
    if (!(figure->value >= low && figure->value <= high)) {
        snprintf(what, sizeof what, "%g is out of range (expected %g to %g)", figure->value, low, high);
        return refuse(path, key, what);
    }
    if (!(figure->spread >= 0 && figure->spread <= 2)) {
        snprintf(what, sizeof what, "spread %g is out of range (expected 0 to 2)", figure->spread);
        return refuse(path, key, what);
    }
    if (figure->spread == 0) figure->spread = FIGURE_SPREAD;
    return OK;
}

static Status check_device(Machine *m, const char *path)
{
    MachineDevice *d = &m->device;
    TRY(check_figure(path, "device.memory_bytes", &d->memory_bytes, 1e8, 1e14, true));
    TRY(check_figure(path, "device.copy_bytes_per_s", &d->copy_bytes_per_s, 1e8, 1e14, true));
    TRY(check_figure(path, "device.bf16_flops", &d->bf16_flops, 1e8, 1e17, false));
    TRY(check_figure(path, "device.f32_flops", &d->f32_flops, 1e8, 1e17, true));
    TRY(check_figure(path, "device.f64_flops", &d->f64_flops, 1e8, 1e17, false));
    TRY(check_figure(path, "device.launch_s", &d->launch_s, 0, 1e-2, true));
    TRY(check_figure(path, "device.graph_launch_s", &d->graph_launch_s, 0, 1e-2, false));
    if (d->graph_launch_s.value > d->launch_s.value)
        return refuse(path, "device.graph_launch_s",
                      "a kernel inside a graph cannot cost more than one launched alone");
    if (m->kind == MACHINE_GPU && d->bf16_flops.value > 0 && d->bf16_flops.value < d->f32_flops.value)
        return refuse(path, "device.bf16_flops", "slower than f32_flops: the two seem to be swapped");
    return check_figure(path, "rank_noise", &m->rank_noise, 0, 1, true);
}

static Status check_topology(Machine *m, const char *path)
{
    MachineNode *n = &m->node;
    MachineNetwork *w = &m->network;
    if (n->devices < 1 || n->devices > 1024) return refuse(path, "node.devices", "out of range (expected 1 to 1024)");
    TRY(check_figure(path, "node.link_bytes_per_s", &n->link_bytes_per_s, 1e7, 1e14, n->devices > 1));
    TRY(check_figure(path, "node.collective_floor_s", &n->collective_floor_s, 0, 1, false));
    TRY(check_figure(path, "node.overlap", &n->overlap, 0.01, 1, false));
    if (n->devices == 1 && n->link_bytes_per_s.value > 0)
        return refuse(path, "node.link_bytes_per_s", "a node of one device has no neighbour to link to");
    if (m->kind == MACHINE_CPU && n->fabric == FABRIC_NVLINK)
        return refuse(path, "node.fabric", "nvlink on a machine of kind cpu");
    if (n->nvls && n->fabric != FABRIC_NVLINK) return refuse(path, "node.nvls", "needs fabric: nvlink");
    if (w->nodes < 1 || w->nodes > 1000000)
        return refuse(path, "network.nodes", "out of range (expected 1 to 1000000)");
    bool network = w->nodes > 1;
    if (network && (w->rails < 1 || w->rails > 64))
        return refuse(path, network && !w->rails ? "network.nodes" : "network.rails",
                      "several nodes need rails: 1 to 64 network cards each");
    TRY(check_figure(path, "network.rail_bytes_per_s", &w->rail_bytes_per_s, 1e6, 1e13, network));
    TRY(check_figure(path, "network.latency_s", &w->latency_s, 0, 1, false));
    TRY(check_figure(path, "network.oversubscription", &w->oversubscription, 1, 100, false));
    if (!network && (w->rails > 0 || w->rail_bytes_per_s.value > 0))
        return refuse(path, "network.nodes", "one node, yet network cards are described");
    if (w->oversubscription.value == 0) w->oversubscription.value = 1;
    return OK;
}

static Status check_samples(const Machine *m, const char *path)
{
    char what[240];
    long first = yamlfile_line_of(path, "collectives");
    if (m->samples > 0 && !m->collectives_source)
        return refuse(path, "collectives", "collectives_source is missing: say where the times come from");
    for (unsigned i = 0; i < m->samples; i++) {
        const MachineSample *s = &m->sample[i];
        what[0] = '\0';
        if (s->ranks < 2 || s->ranks > machine_devices(m))
            snprintf(what, sizeof what, "%lld ranks (expected 2 to %lld, the devices of this machine)",
                     (long long)s->ranks, (long long)machine_devices(m));
        else if (!(s->bytes > 0 && s->bytes < 1e15) || !(s->time_s > 0 && s->time_s < 1e4))
            snprintf(what, sizeof what, "%g bytes in %g s", s->bytes, s->time_s);
        else if (s->ranks <= m->node.devices && !m->node.nvls && m->kind == MACHINE_GPU &&
                 collective_wire_bytes(s) / s->time_s > 1.25 * m->node.link_bytes_per_s.value)
            snprintf(what, sizeof what, "%.3g GB/s over links of %.3g GB/s: one of them is wrong",
                     1e-9 * collective_wire_bytes(s) / s->time_s, 1e-9 * m->node.link_bytes_per_s.value);
        if (what[0])
            return status_fail_at(ERR_INPUT, path, first, "collectives, entry %u (%s, %g bytes): %s", i + 1,
                                  COLLECTIVE_NAMES[s->collective], s->bytes, what);
    }
    return OK;
}

int64_t machine_devices(const Machine *machine)
{
    return machine->node.devices * machine->network.nodes;
}

Status machine_read(const char *path, Machine **machine_out)
{
    void *data = NULL;
    TRY(yamlfile_load(path, &MACHINE_SCHEMA, &data));
    Machine *m = data;
    Status status;
    TRY_GOTO(status, check_device(m, path), fail);
    TRY_GOTO(status, check_topology(m, path), fail);
    TRY_GOTO(status, check_samples(m, path), fail);
    TRY_GOTO(status, collective_calibrate(m), fail);
    m->file = strdup(path);
    if (!m->file) {
        status = status_fail_at(ERR_MEMORY, path, 0, "out of memory");
        goto fail;
    }
    *machine_out = m;
    return OK;
fail:
    yamlfile_free(&MACHINE_SCHEMA, &data);
    return status;
}

void machine_destroy(Machine **machine)
{
    if (!machine || !*machine) return;
    free((*machine)->file);
    void *data = *machine;
    yamlfile_free(&MACHINE_SCHEMA, &data);
    *machine = NULL;
}

static void put_figure(FILE *f, const char *indent, const char *key, const Figure *figure)
{
    if (!figure->source) return;
    fprintf(f, "%s%s: {value: %.17g, spread: %.17g, source: \"%s\"}\n", indent, key, figure->value, figure->spread,
            figure->source);
}

static void put_machine(FILE *f, const Machine *m)
{
    const MachineDevice *d = &m->device;
    fprintf(f, "name: \"%s\"\ndescription: \"%s\"\nkind: %s\ndevice:\n  model: \"%s\"\n", m->name, m->description,
            KINDS[m->kind].str, d->model);
    put_figure(f, "  ", "memory_bytes", &d->memory_bytes);
    put_figure(f, "  ", "copy_bytes_per_s", &d->copy_bytes_per_s);
    put_figure(f, "  ", "bf16_flops", &d->bf16_flops);
    put_figure(f, "  ", "f32_flops", &d->f32_flops);
    put_figure(f, "  ", "f64_flops", &d->f64_flops);
    put_figure(f, "  ", "launch_s", &d->launch_s);
    put_figure(f, "  ", "graph_launch_s", &d->graph_launch_s);
    fprintf(f, "node:\n  devices: %lld\n  fabric: %s\n", (long long)m->node.devices, FABRICS[m->node.fabric].str);
    put_figure(f, "  ", "link_bytes_per_s", &m->node.link_bytes_per_s);
    fprintf(f, "  nvls: %s\n", m->node.nvls ? "true" : "false");
    put_figure(f, "  ", "collective_floor_s", &m->node.collective_floor_s);
    put_figure(f, "  ", "overlap", &m->node.overlap);
    fprintf(f, "network:\n  nodes: %lld\n", (long long)m->network.nodes);
    if (m->network.nodes > 1) fprintf(f, "  rails: %lld\n", (long long)m->network.rails);
    put_figure(f, "  ", "rail_bytes_per_s", &m->network.rail_bytes_per_s);
    put_figure(f, "  ", "latency_s", &m->network.latency_s);
    put_figure(f, "  ", "oversubscription", &m->network.oversubscription);
    put_figure(f, "", "rank_noise", &m->rank_noise);
    if (m->samples == 0) return;
    fprintf(f, "collectives_source: \"%s\"\ncollectives:\n",
            m->collectives_source ? m->collectives_source : "measured");
    for (unsigned i = 0; i < m->samples; i++)
        fprintf(f, "  - {collective: %s, ranks: %lld, bytes: %.17g, time_s: %.17g%s}\n",
                COLLECTIVE_NAMES[m->sample[i].collective], (long long)m->sample[i].ranks, m->sample[i].bytes,
                m->sample[i].time_s, m->sample[i].graph ? ", graph: true" : "");
}

/* Texts of a machine end up between double quotes. */
static bool quotable(const char *text)
{
    return !text || !text[strcspn(text, "\"\\\n\r\t")];
}

Status machine_write(const Machine *m, const char *path)
{
    const char *texts[] = {m->name, m->description, m->device.model, m->collectives_source};
    for (int i = 0; i < 4; i++)
        if (!quotable(texts[i]))
            return status_fail_at(ERR_INPUT, path, 0, "a text with quotes or line breaks cannot be written: %s",
                                  texts[i]);
    Output output;
    TRY(output_open(path, NULL, &output));
    put_machine(output.file, m);
    return output_close(&output);
}
