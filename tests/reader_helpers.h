/* Shared by the reader tests: texts made in place, remarks collected, errors that must name file and line. */
#ifndef FOLDSCALE_TESTS_READER_HELPERS_H
#define FOLDSCALE_TESTS_READER_HELPERS_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/log.h"
#include "data/text.h"

typedef struct Remarks {
    char text[4096];
} Remarks;

static inline void remarks_take(void *context, const char *file, long line, const char *text)
{
    Remarks *remarks = context;
    size_t used = strlen(remarks->text);
    snprintf(remarks->text + used, sizeof remarks->text - used, "%s:%ld: %s\n", file, line, text);
}

static inline Text text_of(const char *name, const char *content)
{
    Text text = {0};
    assert_int_equal(text_from_bytes(name, content, strlen(content), &text), OK);
    return text;
}

static inline void assert_says(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("\"%s\" lacks \"%s\"", text, part);
}

/* A file of the source tree. */
static inline const char *source_path(const char *name, char path[1024])
{
    const char *source = getenv("FOLDSCALE_SOURCE");
    snprintf(path, 1024, "%s/%s", source ? source : ".", name);
    return path;
}

#endif
