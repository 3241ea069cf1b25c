#include "experiments/slurm.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "experiments/files.h"
#include "experiments/launch.h"

/* A word for the shell, in single quotes. */
static void put_word(FILE *out, const char *word)
{
    fputs(" '", out);
    for (; *word; word++) {
        if (*word == '\'')
            fputs("'\\''", out);
        else
            fputc(*word, out);
    }
    fputc('\'', out);
}

/* sbatch reads its lines without a shell: a quote does not protect there, a space ends the value, '%' stands for a
 * number of the job. What a user gives must need no protection. */
static Status check_plain(const char *option, const char *text, const char *also)
{
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (!isalnum(*c) && *c < 0x80 && !strchr("_,.:-", *c) && !strchr(also, *c))
            return status_fail(ERR_USAGE,
                               "sweep: %s \"%s\" cannot stand in a job script (expected letters, digits and _,.:-%s)",
                               option, text, also);
    return *text ? OK : status_fail(ERR_USAGE, "sweep: %s is empty", option);
}

/* As the path will be called: what is there of it made absolute, with the rest behind. */
static Status absolute(const char *path, char *out, size_t size)
{
    char there[PATH_MAX], real[PATH_MAX];
    if (strlen(path) >= sizeof there) return status_fail(ERR_IO, "%s: the path is too long", path);
    strcpy(there, path);
    size_t length = strlen(there);
    while (!realpath(length ? there : ".", real)) {
        if (errno != ENOENT || !length) return status_fail(ERR_IO, "%s: cannot make the path absolute", path);
        while (length && there[length - 1] == '/') length--;
        while (length && there[length - 1] != '/') length--;
        there[length] = '\0';
    }
    int used = snprintf(out, size, "%s%s%s", real, path[length] ? "/" : "", path + length);
    return used < (int)size ? OK : status_fail(ERR_IO, "%s: the path is too long", path);
}

Status slurm_check(const SlurmOptions *options, const char *folder)
{
    char path[2 * PATH_MAX];
    if (options->partition) TRY(check_plain("--partition", options->partition, ""));
    TRY(absolute(folder, path, sizeof path));
    return check_plain("the folder", path, "/+=@~");
}

static void put_header(FILE *out, const SlurmOptions *o, const StudyPoint *p, bool gpus, const char *folder)
{
    int per_node = p->ranks < (int)o->gpus_per_node ? p->ranks : (int)o->gpus_per_node;
    int nodes = (p->ranks + per_node - 1) / per_node;
    fprintf(out, "#!/bin/bash\n#SBATCH --job-name=%s\n#SBATCH --nodes=%d\n#SBATCH --ntasks=%d\n", p->id, nodes,
            p->ranks);
    fprintf(out, "#SBATCH --ntasks-per-node=%d\n#SBATCH --time=%lld\n#SBATCH --exclusive\n", per_node,
            (long long)o->minutes);
    if (gpus) fprintf(out, "#SBATCH --gpus-per-node=%d\n", per_node);
    if (o->partition) fprintf(out, "#SBATCH --partition=%s\n", o->partition);
    /* submit.sh knows a job by its name and this folder, from wherever it was submitted */
    fprintf(out, "#SBATCH --chdir=%s/slurm\n#SBATCH --output=%s/points/%s/log.txt\nset -eu\ncd", folder, folder, p->id);
}

static Status write_script(const char *path, const char *text, size_t size)
{
    TRY(file_write_whole(path, text, size));
    return chmod(path, 0755) == 0 ? OK : status_fail(ERR_IO, "%s: cannot make it executable", path);
}

static Status write_point(const SlurmOptions *options, const Config *config, const char *study,
                          const TextList *overrides, const char *folder, const StudyPoint *point, Arena *arena)
{
    char path[4096], self[4096], here[PATH_MAX], *text = NULL;
    size_t size = 0;
    TextList *set = calloc(1, sizeof *set);
    FILE *out = set ? open_memstream(&text, &size) : NULL;
    if (!out) {
        free(set);
        return status_fail(ERR_MEMORY, "sweep: out of memory");
    }
    *set = *overrides;
    Status status = study_overrides(config, point, arena, set);
    if (status == OK) status = launch_self(self, sizeof self);
    if (status == OK && !getcwd(here, sizeof here))
        status = status_fail(ERR_IO, "sweep: cannot tell the working folder: %s", strerror(errno));
    if (status == OK) {
        put_header(out, options, point, config->backend == BACKEND_CUDA, folder);
        put_word(out, here); /* paths of the study and of --set may be relative to it */
        /* else a rank that dies leaves the others waiting for it */
        fputs("\nsrun --mpi=pmix --kill-on-bad-exit=1", out);
        put_word(out, self);
        fputs(" train", out);
        put_word(out, study);
        snprintf(path, sizeof path, "%s/points/%s", folder, point->id);
        status = files_make_folder(path);
        fputs(" --replace --out", out);
        put_word(out, path);
        for (int i = 0; i < set->count; i++) {
            fputs(" --set", out);
            put_word(out, set->item[i]);
        }
        fputc('\n', out);
    }
    snprintf(path, sizeof path, "%s/slurm/%s.sh", folder, point->id);
    if (fclose(out) != 0 && status == OK) status = status_fail(ERR_MEMORY, "sweep: out of memory");
    if (status == OK) status = write_script(path, text, size);
    free(text);
    free(set);
    return status;
}

static Status submit_script(const char *folder, int steps, char **text_out, size_t *size_out)
{
    /* steps.csv is there from the first step, and a run that a signal ends has a run_stop too */
    static const char form[] =
        "#!/bin/bash\n"
        "# Submits every point that is not complete, queued, running or suspended, one after the other.\n"
        "set -eu\n"
        "cd \"$(dirname \"$0\")\"\n"
        "queued=\n"
        "if command -v squeue >/dev/null; then queued=$(squeue -a -h -t PD,R,S,CG,CF -u \"$(id -un)\" -o '%%j %%Z'); "
        "fi\n"
        "for job in n*.sh; do\n"
        "  point=${job%%.sh}\n"
        "  grep -qs '\"run_stop\".*\"step_num\":%d,' \"../points/$point/mlperf.log\" && continue\n"
        "  if grep -qxF \"$point %s/slurm\" <<<\"$queued\"; then # points of other studies have the same names\n"
        "    echo \"$point: left out, queued or running\"\n"
        "  else\n"
        "    sbatch \"$job\"\n"
        "  fi\n"
        "done\n";
    FILE *out = open_memstream(text_out, size_out);
    if (out) fprintf(out, form, steps, folder);
    return out && fclose(out) == 0 ? OK : status_fail(ERR_MEMORY, "sweep: out of memory");
}

Status slurm_write(const SlurmOptions *options, const Config *config, const char *study, const TextList *overrides,
                   const char *folder, const StudyPoint *points, int count)
{
    char path[4096], *submit = NULL;
    size_t size = 0;
    Status status = submit_script(folder, config->study.steps, &submit, &size);
    Arena arena = {0};
    snprintf(path, sizeof path, "%s/slurm", folder);
    if (status == OK) status = files_make_folder(path);
    for (int i = 0; i < count && status == OK; i++)
        status = write_point(options, config, study, overrides, folder, &points[i], &arena);
    arena_free(&arena);
    snprintf(path, sizeof path, "%s/slurm/submit.sh", folder);
    if (status == OK) status = write_script(path, submit, size);
    free(submit);
    if (status == OK) printf("%d job scripts; start them with %s\n", count, path);
    return status;
}
