#include "engine/words.h"

#include <stdio.h>
#include <string.h>

static const char REST[] = "...";

void words_add(WordList *list, const char *word)
{
    if (list->full) return;
    const char *comma = list->length ? ", " : "";
    size_t room = sizeof list->text - list->length - strlen(comma);
    /* behind each word there is room for the end of a list that is cut */
    list->full = strlen(word) + strlen(", ") + sizeof REST > room;
    list->length += (size_t)snprintf(list->text + list->length, sizeof list->text - list->length, "%s%s", comma,
                                     list->full ? REST : word);
}
