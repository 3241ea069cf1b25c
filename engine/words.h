/* Lists of words in messages: "a, b, c". */
#ifndef FOLDSCALE_ENGINE_WORDS_H
#define FOLDSCALE_ENGINE_WORDS_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed: an empty list. */
typedef struct WordList {
    char text[1024]; /* of a message, which holds 1,600 bytes behind the place in a file */
    size_t length;
    bool full;
} WordList;

/* Appends a word. The first one that does not fit ends the list as ", ..."; it and what comes after it are left out. */
void words_add(WordList *list, const char *word);

#endif
