/* fit.json: a fitted model with its draws, so that predictions need no refit. */
#include "analysis/fit_internal.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/input.h"
#include "engine/output.h"

enum { FORMAT_VERSION = 3, JSON_LIMIT_BYTES = 256 << 20, DRAW_LIMIT = 1000000 };

/* JSON has no NaN: null stands for it. Printed here because cJSON stops at 15 digits when they come close. */
static cJSON *number(double value)
{
    char text[40];
    if (!isfinite(value)) return cJSON_CreateNull();
    snprintf(text, sizeof text, "%.17g", value);
    return cJSON_CreateRaw(text);
}

static cJSON *numbers(const double *value, int count)
{
    cJSON *array = cJSON_CreateArray();
    for (int i = 0; i < count; i++) cJSON_AddItemToArray(array, number(value[i]));
    return array;
}

static cJSON *params(const double *value)
{
    cJSON *object = cJSON_CreateObject();
    for (int i = 0; i < FIT_PARAM_COUNT; i++) cJSON_AddItemToObject(object, FIT_PARAM_NAMES[i], number(value[i]));
    return object;
}

static cJSON *lacks(const FitLack *lack)
{
    cJSON *object = cJSON_CreateObject();
    for (int k = 0; k < FIT_PHASE_COUNT; k++) {
        cJSON *item = cJSON_AddObjectToObject(object, FIT_PHASE_NAMES[k]);
        cJSON_AddItemToObject(item, "sd", number(lack[k].sd));
        cJSON_AddItemToObject(item, "freedom", number(lack[k].freedom));
        cJSON_AddNumberToObject(item, "configurations", lack[k].configurations);
    }
    return object;
}

static cJSON *candidates(const FitModel *m)
{
    cJSON *array = cJSON_CreateArray();
    for (int f = 0; f < FORM_COUNT; f++) {
        const FitCandidate *c = &m->candidate[f];
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "form", FIT_FORM_NAMES[f]);
        cJSON_AddBoolToObject(item, "usable", c->usable);
        cJSON_AddItemToObject(item, "forward_error", number(c->forward_error));
        cJSON_AddItemToObject(item, "comm_error", number(c->comm_error));
        cJSON_AddItemToObject(item, "last_error", number(c->last_error));
        cJSON_AddItemToObject(item, "aicc", number(c->aicc));
        cJSON_AddItemToObject(item, "weight", number(c->weight));
        cJSON_AddItemToObject(item, "param", params(c->param));
        cJSON_AddItemToObject(item, "lack", lacks(c->lack));
        cJSON_AddItemToArray(array, item);
    }
    return array;
}

static cJSON *residuals(const FitModel *m)
{
    cJSON *array = cJSON_CreateArray();
    for (int r = 0; r < m->residuals; r++) {
        const FitResidual *e = &m->residual[r];
        cJSON *item = cJSON_CreateObject();
        cJSON_AddNumberToObject(item, "point", e->point);
        cJSON_AddStringToObject(item, "what", e->what);
        cJSON_AddItemToObject(item, "measured_s", number(e->measured_s));
        cJSON_AddItemToObject(item, "fitted_s", number(e->fitted_s));
        cJSON_AddItemToObject(item, "standardized", number(e->standardized));
        cJSON_AddItemToObject(item, "leverage", number(e->leverage));
        cJSON_AddItemToArray(array, item);
    }
    return array;
}

static cJSON *to_json(const FitModel *m)
{
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "format", "foldscale fit");
    cJSON_AddNumberToObject(root, "version", FORMAT_VERSION);
    cJSON_AddStringToObject(root, "form", FIT_FORM_NAMES[m->form]);
    cJSON_AddStringToObject(root, "backend", m->backend);
    cJSON_AddStringToObject(root, "device", m->device);
    cJSON_AddItemToObject(root, "n_min", number(m->n_min));
    cJSON_AddItemToObject(root, "n_max", number(m->n_max));
    cJSON_AddNumberToObject(root, "counts", m->counts);
    cJSON_AddNumberToObject(root, "points", m->points);
    cJSON_AddItemToObject(root, "tau", number(m->tau));
    cJSON_AddItemToObject(root, "noise_sd", number(m->noise_sd));
    cJSON_AddNumberToObject(root, "seed", (double)m->seed);
    cJSON_AddBoolToObject(root, "has_loader", m->has_loader);
    cJSON_AddBoolToObject(root, "has_host", m->has_host);
    cJSON_AddItemToObject(root, "param", params(m->param));
    cJSON_AddItemToObject(root, "param_sd", params(m->param_sd));
    cJSON_AddItemToObject(root, "reduced_chi2", number(m->reduced_chi2));
    cJSON_AddItemToObject(root, "condition", number(m->condition));
    cJSON_AddItemToObject(root, "coverage", number(m->coverage));
    cJSON_AddNumberToObject(root, "coverage_of", m->coverage_of);
    cJSON_AddItemToObject(root, "correlation", numbers(&m->correlation[0][0], FIT_PARAM_COUNT * FIT_PARAM_COUNT));
    cJSON_AddItemToObject(root, "candidates", candidates(m));
    cJSON_AddItemToObject(root, "residuals", residuals(m));
    cJSON *draws = cJSON_AddArrayToObject(root, "draws");
    for (int b = 0; b < m->draws; b++) {
        cJSON *row = numbers(m->draw + (size_t)b * FIT_PARAM_COUNT, FIT_PARAM_COUNT);
        cJSON_InsertItemInArray(row, 0, cJSON_CreateNumber(m->draw_form[b]));
        cJSON_AddItemToArray(draws, row);
    }
    return root;
}

Status fit_write(const FitModel *model, const char *path)
{
    cJSON *root = to_json(model);
    char *text = root ? cJSON_Print(root) : NULL;
    cJSON_Delete(root);
    Output output;
    Status status = text ? output_open(path, FIT_BEGINS, &output)
                         : status_fail_at(ERR_MEMORY, path, 0, "out of memory while writing the fit");
    if (status == OK) {
        fprintf(output.file, "%s\n", text);
        status = output_close(&output);
    }
    cJSON_free(text);
    return status;
}

/* --- reading ------------------------------------------------------------------------------------------------------ */

static Status get_number(const cJSON *object, const char *name, const char *path, double *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (cJSON_IsNull(item)) {
        *out = NAN;
        return OK;
    }
    if (!cJSON_IsNumber(item)) return status_fail_at(ERR_INPUT, path, 0, "\"%s\" is missing or not a number", name);
    *out = item->valuedouble;
    return OK;
}

static Status get_int(const cJSON *object, const char *name, const char *path, int low, int high, int *out)
{
    double value;
    TRY(get_number(object, name, path, &value));
    if (!(value >= low && value <= high) || value != floor(value))
        return status_fail_at(ERR_INPUT, path, 0, "\"%s\" is %g (expected a whole number from %d to %d)", name, value,
                              low, high);
    *out = (int)value;
    return OK;
}

/* Logarithms of seconds and multipliers: what no fit writes would come out as infinite times. */
static const double PARAM_LIMIT = 60;

static Status get_spread(const cJSON *object, const char *name, const char *path, double *out)
{
    TRY(get_number(object, name, path, out));
    if (*out >= 0 && *out <= FIT_SPREAD_LIMIT) return OK;
    return status_fail_at(ERR_INPUT, path, 0, "\"%s\" is %g (expected 0 to %g)", name, *out, FIT_SPREAD_LIMIT);
}

static Status get_form(const cJSON *object, const char *path, FitForm *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, "form");
    for (int f = 0; cJSON_IsString(item) && f < FORM_COUNT; f++)
        if (!strcmp(item->valuestring, FIT_FORM_NAMES[f])) {
            *out = (FitForm)f;
            return OK;
        }
    return status_fail_at(ERR_INPUT, path, 0, "\"form\" is missing or unknown");
}

static Status get_params(const cJSON *object, const char *name, const char *path, double *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsObject(item)) return status_fail_at(ERR_INPUT, path, 0, "\"%s\" is missing", name);
    for (int i = 0; i < FIT_PARAM_COUNT; i++) {
        TRY(get_number(item, FIT_PARAM_NAMES[i], path, &out[i]));
        if (fabs(out[i]) > PARAM_LIMIT)
            return status_fail_at(ERR_INPUT, path, 0, "\"%s\" of \"%s\" is %g (expected at most %g in size)",
                                  FIT_PARAM_NAMES[i], name, out[i], PARAM_LIMIT);
    }
    return OK;
}

static Status get_text(FitModel *m, const cJSON *object, const char *name, const char *path, const char **out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsString(item)) return status_fail_at(ERR_INPUT, path, 0, "\"%s\" is missing or not a text", name);
    *out = arena_strdup(&m->arena, item->valuestring);
    return *out ? OK : status_fail_at(ERR_MEMORY, path, 0, "out of memory");
}

static Status read_draws(const cJSON *root, const char *path, FitModel *m)
{
    const cJSON *draws = cJSON_GetObjectItemCaseSensitive(root, "draws"), *row;
    int count = cJSON_IsArray(draws) ? cJSON_GetArraySize(draws) : 0;
    if (count < 1 || count > DRAW_LIMIT)
        return status_fail_at(ERR_INPUT, path, 0, "\"draws\" is missing, empty or longer than %d", (int)DRAW_LIMIT);
    m->draws = count;
    m->draw = arena_array(&m->arena, (size_t)count * FIT_PARAM_COUNT, sizeof *m->draw);
    m->draw_form = arena_array(&m->arena, (size_t)count, sizeof *m->draw_form);
    if (!m->draw || !m->draw_form) return status_fail_at(ERR_MEMORY, path, 0, "out of memory for %d draws", count);
    int b = 0;
    cJSON_ArrayForEach(row, draws)
    {
        const cJSON *value = row->child;
        if (cJSON_GetArraySize(row) != FIT_PARAM_COUNT + 1 || !cJSON_IsNumber(value) || value->valuedouble < 0 ||
            value->valuedouble >= FORM_COUNT)
            return status_fail_at(ERR_INPUT, path, 0, "draw %d is not a form and %d numbers", b + 1,
                                  (int)FIT_PARAM_COUNT);
        m->draw_form[b] = (int)value->valuedouble;
        value = value->next;
        for (int i = 0; i < FIT_PARAM_COUNT; i++, value = value->next) {
            double number = cJSON_IsNumber(value) ? value->valuedouble : NAN;
            if (fabs(number) > PARAM_LIMIT)
                return status_fail_at(ERR_INPUT, path, 0, "draw %d has %g (expected at most %g in size)", b + 1, number,
                                      PARAM_LIMIT);
            m->draw[(size_t)b * FIT_PARAM_COUNT + (size_t)i] = number;
        }
        b++;
    }
    return fit_finish_draws(m);
}

static Status get_lacks(const cJSON *object, const char *path, FitForm form, FitLack *out)
{
    const cJSON *lack = cJSON_GetObjectItemCaseSensitive(object, "lack");
    for (int k = 0; k < FIT_PHASE_COUNT; k++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(lack, FIT_PHASE_NAMES[k]);
        if (!item)
            return status_fail_at(ERR_INPUT, path, 0, "the form \"%s\" has no \"lack\" of \"%s\"", FIT_FORM_NAMES[form],
                                  FIT_PHASE_NAMES[k]);
        TRY(get_spread(item, "sd", path, &out[k].sd));
        TRY(get_number(item, "freedom", path, &out[k].freedom));
        TRY(get_int(item, "configurations", path, 0, 1 << 20, &out[k].configurations));
        if (!(fabs(out[k].freedom) <= out[k].configurations))
            return status_fail_at(ERR_INPUT, path, 0, "\"freedom\" is %g of %d configurations (expected no more)",
                                  out[k].freedom, out[k].configurations);
    }
    return OK;
}

static Status read_candidates(const cJSON *root, const char *path, FitModel *m)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(root, "candidates"), *item;
    bool seen[FORM_COUNT] = {false};
    cJSON_ArrayForEach(item, array)
    {
        FitForm form;
        TRY(get_form(item, path, &form));
        FitCandidate *c = &m->candidate[form];
        if (seen[form])
            return status_fail_at(ERR_INPUT, path, 0, "\"candidates\" has the form \"%s\" twice", FIT_FORM_NAMES[form]);
        c->form = form;
        c->usable = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(item, "usable"));
        TRY(get_number(item, "forward_error", path, &c->forward_error));
        TRY(get_number(item, "comm_error", path, &c->comm_error));
        TRY(get_number(item, "last_error", path, &c->last_error));
        TRY(get_number(item, "aicc", path, &c->aicc));
        TRY(get_number(item, "weight", path, &c->weight));
        TRY(get_params(item, "param", path, c->param));
        TRY(get_lacks(item, path, form, c->lack));
        seen[form] = true;
    }
    for (int f = 0; f < FORM_COUNT; f++)
        if (!seen[f]) return status_fail_at(ERR_INPUT, path, 0, "\"candidates\" has no form \"%s\"", FIT_FORM_NAMES[f]);
    return OK;
}

static Status read_residuals(const cJSON *root, const char *path, FitModel *m)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(root, "residuals"), *item;
    int count = cJSON_IsArray(array) ? cJSON_GetArraySize(array) : 0;
    m->residual = arena_array(&m->arena, (size_t)count + 1, sizeof *m->residual);
    if (!m->residual) return status_fail_at(ERR_MEMORY, path, 0, "out of memory");
    cJSON_ArrayForEach(item, array)
    {
        FitResidual *e = &m->residual[m->residuals];
        const cJSON *what = cJSON_GetObjectItemCaseSensitive(item, "what");
        for (int k = 0; k < FIT_PHASE_COUNT; k++)
            if (cJSON_IsString(what) && !strcmp(what->valuestring, FIT_PHASE_NAMES[k])) e->what = FIT_PHASE_NAMES[k];
        if (!e->what) return status_fail_at(ERR_INPUT, path, 0, "residual %d has no known phase", m->residuals + 1);
        TRY(get_int(item, "point", path, 0, 1 << 20, &e->point));
        TRY(get_number(item, "measured_s", path, &e->measured_s));
        TRY(get_number(item, "fitted_s", path, &e->fitted_s));
        TRY(get_number(item, "standardized", path, &e->standardized));
        TRY(get_number(item, "leverage", path, &e->leverage));
        m->residuals++;
    }
    return OK;
}

static Status from_json(const cJSON *root, const char *path, FitModel *m)
{
    double seed;
    int version;
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(root, "format");
    if (!cJSON_IsString(format) || strcmp(format->valuestring, "foldscale fit"))
        return status_fail_at(ERR_INPUT, path, 0, "not a fit of foldscale (no \"format\": \"foldscale fit\")");
    TRY(get_int(root, "version", path, 1, FORMAT_VERSION, &version));
    if (version < FORMAT_VERSION) /* 1 knows no lack of fit, 2 has that of waits in logarithms */
        return status_fail_at(ERR_INPUT, path, 0,
                              "a fit of version %d, whose intervals would be wrong (expected %d: run \"foldscale fit\" "
                              "again)",
                              version, (int)FORMAT_VERSION);
    TRY(get_form(root, path, &m->form));
    TRY(get_text(m, root, "backend", path, &m->backend));
    TRY(get_text(m, root, "device", path, &m->device));
    TRY(get_number(root, "n_min", path, &m->n_min));
    TRY(get_number(root, "n_max", path, &m->n_max));
    if (!(m->n_max >= 1) || isinf(m->n_max))
        return status_fail_at(ERR_INPUT, path, 0, "\"n_max\" is %g (expected 1 or more)", m->n_max);
    TRY(get_int(root, "counts", path, 1, 1 << 20, &m->counts));
    TRY(get_int(root, "points", path, 1, 1 << 20, &m->points));
    TRY(get_spread(root, "tau", path, &m->tau));
    TRY(get_spread(root, "noise_sd", path, &m->noise_sd));
    TRY(get_number(root, "seed", path, &seed));
    m->seed = seed >= 0 && seed < 9e15 ? (uint64_t)seed : 0;
    m->has_loader = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(root, "has_loader"));
    m->has_host = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(root, "has_host"));
    TRY(get_params(root, "param", path, m->param));
    TRY(get_number(root, "reduced_chi2", path, &m->reduced_chi2));
    TRY(get_number(root, "condition", path, &m->condition));
    TRY(get_number(root, "coverage", path, &m->coverage));
    TRY(get_int(root, "coverage_of", path, 0, 1 << 20, &m->coverage_of));
    const cJSON *correlation = cJSON_GetObjectItemCaseSensitive(root, "correlation"), *item;
    int k = 0;
    cJSON_ArrayForEach(item, correlation)
    {
        if (k >= FIT_PARAM_COUNT * FIT_PARAM_COUNT) break;
        (&m->correlation[0][0])[k++] = cJSON_IsNumber(item) ? item->valuedouble : 0;
    }
    TRY(read_candidates(root, path, m));
    TRY(read_residuals(root, path, m));
    return read_draws(root, path, m);
}

static Status read_text(const char *path, char **text_out)
{
    FILE *file;
    TRY(input_open(path, &file));
    long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    char *text = size >= 0 && size <= JSON_LIMIT_BYTES ? malloc((size_t)size + 1) : NULL;
    bool good = text && fseek(file, 0, SEEK_SET) == 0 && fread(text, 1, (size_t)size, file) == (size_t)size;
    fclose(file);
    if (!good) {
        free(text);
        return status_fail_at(ERR_IO, path, 0, "cannot read (%ld bytes)", size);
    }
    text[size] = '\0';
    *text_out = text;
    return OK;
}

Status fit_read(const char *path, FitModel **model_out)
{
    char *text = NULL;
    TRY(read_text(path, &text));
    const char *end = NULL;
    cJSON *root = cJSON_ParseWithOpts(text, &end, 1);
    if (!root) {
        long line = 1;
        for (const char *c = text; end && c < end && *c; c++) line += *c == '\n';
        Status status = status_fail_at(ERR_INPUT, path, line, "malformed JSON");
        free(text);
        return status;
    }
    free(text);
    FitModel *model = calloc(1, sizeof *model);
    Status status = model ? from_json(root, path, model) : status_fail_at(ERR_MEMORY, path, 0, "out of memory");
    cJSON_Delete(root);
    if (status != OK) {
        fit_destroy(&model);
        return status;
    }
    *model_out = model;
    return OK;
}

char *fit_anchored_path(const char *path, Arena *arena)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    return arena_printf(arena, "%.*s_anchored.json", dot ? (int)(dot - path) : (int)strlen(path), path);
}
