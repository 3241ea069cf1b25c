#include "experiments/provenance.h"

#include <cJSON.h>
#include <cblas.h>
#include <cyaml/cyaml.h>
#include <gsl/gsl_version.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "engine/input.h"
#include "experiments/files.h"
#include "experiments/version.h"

static void add_machine(cJSON *root, const Backend *backend)
{
    struct utsname system;
    char line[256] = "", cpu[256] = "unknown";
    cJSON *machine = cJSON_AddObjectToObject(root, "machine");
    if (uname(&system) == 0) {
        cJSON_AddStringToObject(machine, "host", system.nodename);
        snprintf(line, sizeof line, "%s %s", system.sysname, system.release);
        cJSON_AddStringToObject(machine, "system", line);
    }
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
            snprintf(cpu, sizeof cpu, "%s", strchr(line, ':') + 2);
            cpu[strcspn(cpu, "\n")] = '\0';
            break;
        }
    if (file) fclose(file);
    cJSON_AddStringToObject(machine, "cpu", cpu);
    cJSON_AddNumberToObject(machine, "cores", (double)sysconf(_SC_NPROCESSORS_ONLN));
    cJSON_AddStringToObject(machine, "backend", backend->name);
    cJSON_AddStringToObject(machine, "device", backend->device);
    if (backend->comm && *backend->comm) cJSON_AddStringToObject(machine, "collectives", backend->comm);
    cJSON_AddNumberToObject(machine, "device_memory_bytes", (double)backend->memory_bytes);
}

static void add_libraries(cJSON *root)
{
    cJSON *libraries = cJSON_AddObjectToObject(root, "libraries");
    cJSON_AddStringToObject(libraries, "cjson", cJSON_Version());
    cJSON_AddStringToObject(libraries, "libcyaml", cyaml_version_str);
    cJSON_AddStringToObject(libraries, "gsl", gsl_version);
    cJSON_AddStringToObject(libraries, "zlib", zlibVersion());
    cJSON_AddStringToObject(libraries, "openblas", openblas_get_config());
    cJSON_AddStringToObject(libraries, "compiler", __VERSION__);
    const char *mpi = getenv("OMPI_VERSION");
    if (mpi) cJSON_AddStringToObject(libraries, "openmpi", mpi);
}

/* The UTF-8 character at `c`: its bytes, 0 when there is none (or it is written longer than need be). */
static int read_character(const unsigned char *c, uint32_t *code_out)
{
    static const struct {
        unsigned char mask, mark; /* of the first byte */
        uint32_t least;           /* a smaller one has a shorter form */
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    enum { FORMS = sizeof forms / sizeof *forms };
    int more = 0;
    while (more < FORMS && (*c & forms[more].mask) != forms[more].mark) more++;
    if (more == FORMS) return 0;
    uint32_t code = *c & (unsigned char)~forms[more].mask;
    for (int k = 1; k <= more; k++) {
        if ((c[k] & 0xc0) != 0x80) return 0;
        code = code << 6 | (c[k] & 0x3f);
    }
    *code_out = code;
    return code >= forms[more].least ? 1 + more : 0;
}

/* YAML 1.1, 5.1: run.json is read as YAML, which refuses a file with any other. Below U+0020 JSON writes \u00... */
static bool is_readable(uint32_t code)
{
    static const uint32_t ranges[][2] = {
        {0x01, 0x7e}, {0x85, 0x85}, {0xa0, 0xd7ff}, {0xe000, 0xfffd}, {0x10000, 0x10ffff}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (code >= ranges[i][0] && code <= ranges[i][1]) return true;
    return false;
}

/* JSON is UTF-8, but an argument (an old path) may be any bytes: those that are no character become '?'. */
static void keep_characters(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c;) {
        uint32_t code = 0;
        int bytes = read_character(c, &code);
        if (bytes > 0 && is_readable(code))
            c += bytes;
        else
            *c++ = '?';
    }
}

static void add_run(cJSON *root, const RunFacts *facts)
{
    char when[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    cJSON_AddStringToObject(root, "program", "foldscale");
    cJSON_AddStringToObject(root, "version", FOLDSCALE_VERSION);
    cJSON_AddStringToObject(root, "commit", version_commit());
    cJSON_AddStringToObject(root, "start", when);
    cJSON *command = cJSON_AddArrayToObject(root, "command");
    for (int i = 0; i < facts->argc; i++) {
        cJSON *argument = cJSON_CreateString(facts->argv[i]);
        if (argument) keep_characters(argument->valuestring);
        cJSON_AddItemToArray(command, argument);
    }
    cJSON_AddNumberToObject(root, "resumed_from", (double)facts->resumed_from);
    const RankLayout *layout = &facts->backend->layout;
    cJSON_AddNumberToObject(root, "ranks", layout->world);
    cJSON_AddNumberToObject(root, "dp", layout->dp);
    cJSON_AddNumberToObject(root, "dap", layout->dap);
    cJSON_AddNumberToObject(root, "seed", (double)facts->config->train.seed);
    cJSON_AddNumberToObject(root, "parameters", (double)facts->parameters);
    cJSON_AddNumberToObject(root, "store_bytes", facts->store_bytes);
    cJSON_AddNumberToObject(root, "workspace_bytes", facts->workspace_bytes);
    cJSON_AddNumberToObject(root, "record_and_passes_s", facts->prepare_s);
}

static void add_programs(cJSON *root, const RunFacts *facts)
{
    cJSON *programs = cJSON_AddObjectToObject(root, "programs");
    for (int i = 0; i < facts->programs; i++) {
        const ProgramFacts *p = &facts->program[i];
        cJSON *item = cJSON_AddObjectToObject(programs, p->name);
        cJSON_AddNumberToObject(item, "ops", p->ops);
        cJSON_AddNumberToObject(item, "flops", p->flops);
        cJSON_AddNumberToObject(item, "bytes", p->bytes);
        cJSON_AddNumberToObject(item, "wire_bytes", p->wire_bytes);
        cJSON_AddNumberToObject(item, "arena_bytes", p->arena_bytes);
    }
}

Status provenance_write(const char *path, const RunFacts *facts)
{
    char *experiment = NULL;
    TRY(config_to_json(facts->config, &experiment));
    cJSON *root = cJSON_CreateObject();
    add_run(root, facts);
    add_machine(root, facts->backend);
    add_libraries(root);
    add_programs(root, facts);
    cJSON_AddItemToObject(root, "experiment", cJSON_Parse(experiment));
    free(experiment);
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    Status status =
        text ? file_write_whole(path, text, strlen(text)) : status_fail(ERR_MEMORY, "%s: out of memory", path);
    free(text);
    return status;
}

Status provenance_hash(const char *path, char hash_out[17])
{
    FILE *file = NULL;
    TRY(input_open(path, &file));
    uint64_t hash = 0xcbf29ce484222325u;
    for (int c; (c = getc(file)) != EOF;) hash = (hash ^ (uint64_t)c) * 0x100000001b3u;
    fclose(file);
    snprintf(hash_out, 17, "%016llx", (unsigned long long)hash);
    return OK;
}
