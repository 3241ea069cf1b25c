/* Lists of words in messages: commas, and where a list is cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "engine/words.h"

static void test_words(void **state)
{
    (void)state;
    WordList list = {0};
    assert_string_equal(list.text, "");
    words_add(&list, "a");
    assert_string_equal(list.text, "a");
    words_add(&list, "b c");
    words_add(&list, "d");
    assert_string_equal(list.text, "a, b c, d");
    assert_false(list.full);
}

/* Whatever the length of the words: all of them, or those that fit and ", ...". */
static void test_cut(void **state)
{
    (void)state;
    enum { SIZE = sizeof((WordList *)NULL)->text };
    for (size_t length = 1; length <= SIZE; length++) {
        WordList list = {0};
        char word[SIZE + 1], whole[SIZE + 1] = "";
        memset(word, 'w', length);
        word[length] = '\0';
        for (int i = 0; i < SIZE; i++) words_add(&list, word);
        assert_true(list.full);
        assert_int_equal(list.length, strlen(list.text));
        while (strlen(whole) + length + sizeof ", ..." <= SIZE) strcat(strcat(whole, word), ", ");
        strcat(whole, "...");
        assert_string_equal(list.text, whole);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_words), cmocka_unit_test(test_cut)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
