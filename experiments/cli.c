#include "experiments/cli.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WORD = 64 };

/* Levenshtein distance of two words, each cut to MAX_WORD letters. */
static int edit_distance(const char *a, const char *b)
{
    size_t n = strnlen(a, MAX_WORD), m = strnlen(b, MAX_WORD);
    int row[MAX_WORD + 1];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

const char *cli_nearest(const char *word, const char *const *names)
{
    const char *best = NULL;
    int best_distance = 1 + (int)strnlen(word, MAX_WORD) / 3;
    if (best_distance > 3) best_distance = 3;
    for (int i = 0; names[i]; i++) {
        int distance = edit_distance(word, names[i]);
        if (distance <= best_distance && (!best || distance < best_distance)) {
            best = names[i];
            best_distance = distance;
        }
    }
    return best;
}

static void print_help(const Usage *usage, const Option *options)
{
    printf("usage: foldscale %s%s%s [options]\n\n%s\n\noptions:\n", usage->command, usage->operands[0] ? " " : "",
           usage->operands, usage->text);
    for (const Option *o = options; o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
        printf("  %-24s %s\n", left, o->help);
    }
    printf("  %-24s %s\n\nexample:\n  %s\n", "--help", "print this and exit", usage->example);
}

static Status unknown_option(const Usage *usage, const Option *options, const char *name)
{
    const char *names[CLI_MAX_ITEMS + 1];
    int count = 0;
    for (const Option *o = options; o->name && count < CLI_MAX_ITEMS; o++) names[count++] = o->name;
    names[count] = NULL;
    const char *near = cli_nearest(name, names);
    if (near) return status_fail(ERR_USAGE, "%s: unknown option --%s; did you mean --%s?", usage->command, name, near);
    return status_fail(ERR_USAGE, "%s: unknown option --%s; 'foldscale %s --help' lists them", usage->command, name,
                       usage->command);
}

static Status set_number(const Usage *usage, const Option *option, const char *text)
{
    char *end = NULL;
    bool whole = option->kind == OPTION_INT;
    bool bounded = option->min != 0 || option->max != 0;
    errno = 0;
    long long integer = whole ? strtoll(text, &end, 10) : 0;
    double real = whole ? (double)integer : strtod(text, &end);
    bool valid = end != text && *end == '\0' && errno == 0 && isfinite(real);
    if (valid && bounded) valid = real >= option->min && real <= option->max;
    if (!valid) {
        if (!bounded)
            return status_fail(ERR_USAGE, "%s: bad value of --%s (found \"%s\", expected a %snumber)", usage->command,
                               option->name, text, whole ? "whole " : "");
        return status_fail(ERR_USAGE, "%s: bad value of --%s (found \"%s\", expected a %snumber from %.10g to %.10g)",
                           usage->command, option->name, text, whole ? "whole " : "", option->min, option->max);
    }
    if (whole)
        *(int64_t *)option->target = integer;
    else
        *(double *)option->target = real;
    return OK;
}

static Status set_option(const Usage *usage, const Option *option, const char *text)
{
    if (option->kind == OPTION_TEXT) {
        *(const char **)option->target = text;
    } else if (option->kind == OPTION_LIST) {
        TextList *list = option->target;
        if (list->count == CLI_MAX_ITEMS)
            return status_fail(ERR_USAGE, "%s: --%s is given more than %d times", usage->command, option->name,
                               CLI_MAX_ITEMS);
        list->item[list->count++] = text;
    } else {
        return set_number(usage, option, text);
    }
    return OK;
}

/* One option at argv[*at], which starts with "--"; moves *at past its value. */
static Status parse_option(const Usage *usage, const Option *options, int argc, char **argv, int *at)
{
    const char *word = argv[*at] + 2, *equal = strchr(word, '=');
    char name[MAX_WORD + 1];
    size_t length = equal ? (size_t)(equal - word) : strlen(word);
    snprintf(name, sizeof name, "%.*s", (int)(length > MAX_WORD ? MAX_WORD : length), word);
    const Option *option = options;
    while (option->name && strcmp(option->name, name) != 0) option++;
    if (!option->name) return unknown_option(usage, options, name);
    if (option->kind == OPTION_FLAG) {
        if (equal) return status_fail(ERR_USAGE, "%s: --%s takes no value", usage->command, name);
        *(bool *)option->target = true;
        return OK;
    }
    if (equal) return set_option(usage, option, equal + 1);
    if (*at + 1 >= argc)
        return status_fail(ERR_USAGE, "%s: --%s needs a value %s", usage->command, name, option->value);
    return set_option(usage, option, argv[++*at]);
}

Status cli_parse(const Usage *usage, const Option *options, int argc, char **argv, TextList *operands_out,
                 bool *help_out)
{
    TextList operands = {0};
    bool only_operands = false;
    *help_out = false;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(usage, options);
            *help_out = true;
            return OK;
        }
    for (int i = 1; i < argc; i++) {
        if (!only_operands && strcmp(argv[i], "--") == 0) {
            only_operands = true;
        } else if (!only_operands && strncmp(argv[i], "--", 2) == 0) {
            TRY(parse_option(usage, options, argc, argv, &i));
        } else if (!only_operands && argv[i][0] == '-' && argv[i][1] != '\0') {
            return unknown_option(usage, options, argv[i] + 1);
        } else {
            if (operands.count == CLI_MAX_ITEMS)
                return status_fail(ERR_USAGE, "%s: more than %d operands", usage->command, CLI_MAX_ITEMS);
            operands.item[operands.count++] = argv[i];
        }
    }
    if (operands.count < usage->min_operands)
        return status_fail(ERR_USAGE, "%s: missing operand (found %d, expected %s); see 'foldscale %s --help'",
                           usage->command, operands.count, usage->operands, usage->command);
    if (operands.count > usage->max_operands)
        return status_fail(ERR_USAGE, "%s: unexpected operand \"%s\" (expected %s)", usage->command,
                           operands.item[usage->max_operands], usage->max_operands ? usage->operands : "none");
    *operands_out = operands;
    return OK;
}

Status cli_int_list(const char *text, const char *what, int64_t min, int64_t max, int limit, int64_t *values_out,
                    int *count_out)
{
    int count = 0;
    for (const char *at = text;;) {
        char *end = NULL;
        errno = 0;
        long long value = strtoll(at, &end, 10);
        if (end == at || errno || value < min || value > max || (*end != ',' && *end != '\0'))
            return status_fail(ERR_USAGE,
                               "bad list of %s (found \"%s\", expected whole numbers from %lld to %lld with commas)",
                               what, text, (long long)min, (long long)max);
        if (count == limit) return status_fail(ERR_USAGE, "more than %d %s in \"%s\"", limit, what, text);
        values_out[count++] = value;
        if (*end == '\0') break;
        at = end + 1;
    }
    *count_out = count;
    return OK;
}
