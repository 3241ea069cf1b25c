/* Small text files of tests; after cmocka.h. */
#ifndef FOLDSCALE_TESTS_TEXT_FILE_H
#define FOLDSCALE_TESTS_TEXT_FILE_H

#include <stdio.h>

static inline void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0 && fclose(file) == 0);
}

static inline void check_text(const char *path, const char *text)
{
    char found[512] = "";
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    found[fread(found, 1, sizeof found - 1, file)] = '\0';
    fclose(file);
    assert_string_equal(found, text);
}

#endif
