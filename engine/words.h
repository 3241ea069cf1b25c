/* Lists of words in messages: "a, b, c". */
#ifndef FOLDSCALE_ENGINE_WORDS_H
#define FOLDSCALE_ENGINE_WORDS_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed: an empty list. */
typedef struct WordList {
    char text[512]; /* of a message with a place in a file, which has 580 */
    size_t length;
    bool full;
} WordList;

/* Appends a word. The first one that does not fit ends the list as ", ..."; it and what comes after it are left out. */
void words_add(WordList *list, const char *word);

#endif
