#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "data/archive_internal.h"

/* Walks the words of a text line by line. */
typedef struct Words {
    const Text *text;
    const char *at;
    int64_t line; /* from 0 */
} Words;

/* The next word on this line, in the arena; NULL at the end of the line or of memory (*failed). */
static char *next_word(Words *words, Arena *arena, bool *failed)
{
    const char *stop = words->text->data + words->text->size, *at = words->at;
    while (at < stop && *at != '\n' && isspace((unsigned char)*at)) at++;
    const char *from = at;
    while (at < stop && !isspace((unsigned char)*at)) at++;
    words->at = at;
    if (at == from) return NULL;
    char *word = arena_strndup(arena, from, (size_t)(at - from));
    if (!word) *failed = true;
    return word;
}

static bool next_line(Words *words)
{
    const char *stop = words->text->data + words->text->size;
    const char *newline = words->at < stop ? memchr(words->at, '\n', (size_t)(stop - words->at)) : NULL;
    if (!newline || newline + 1 >= stop) return false;
    words->at = newline + 1;
    words->line++;
    return true;
}

static size_t count_words(const Text *text)
{
    size_t count = 0;
    for (size_t i = 0; i < text->size; i++)
        count += !isspace((unsigned char)text->data[i]) && (i == 0 || isspace((unsigned char)text->data[i - 1]));
    return count;
}

static size_t count_lines(const Text *text)
{
    size_t count = 1;
    for (size_t i = 0; i < text->size; i++) count += text->data[i] == '\n';
    return count;
}

static Status no_memory(const Text *text)
{
    return status_fail_at(ERR_MEMORY, text->name, 0, "no memory for the list");
}

/* --- duplicate_pdb_chains.txt ---------------------------------------------------------------------------------- */

Status archive_duplicates_parse(const Text *text, Arena *arena, DuplicateGroups *groups)
{
    groups->by_name.arena = arena;
    TRY(text_check_no_nul(text));
    size_t words = count_words(text);
    groups->member = arena_array(arena, words, sizeof *groups->member);
    groups->group_of = arena_array(arena, words, sizeof *groups->group_of);
    groups->first = arena_array(arena, words + 1, sizeof *groups->first);
    if (!groups->member || !groups->group_of || !groups->first) return no_memory(text);
    Words reader = {.text = text, .at = text->data};
    bool failed = false;
    do {
        int64_t before = groups->members;
        for (char *word; (word = next_word(&reader, arena, &failed));) {
            int64_t member;
            if (!archive_is_name(word))
                return status_fail_at(ERR_INPUT, text->name, reader.line + 1,
                                      "\"%.60s\", expected chains named PDBID_chain", word);
            TRY(names_add(&groups->by_name, word, groups->members, &member));
            if (member < before)
                return status_fail_at(ERR_INPUT, text->name, reader.line + 1, "chain %.60s is in two groups", word);
            if (member < groups->members) continue; /* twice in one group */
            groups->member[groups->members] = word;
            groups->group_of[groups->members++] = groups->groups;
        }
        if (failed) return no_memory(text);
        if (groups->members > before) groups->first[++groups->groups] = groups->members;
    } while (next_line(&reader));
    return OK;
}

/* --- obsolete.dat ---------------------------------------------------------------------------------------------- */

static void lower_case(char *word)
{
    for (; *word; word++) *word = (char)tolower((unsigned char)*word);
}

/* "OBSLTE    31-JUL-94 116L     216L": the first successor counts; entries without one are just gone. */
Status archive_obsolete_parse(const Text *text, Arena *arena, ObsoleteEntries *obsolete)
{
    obsolete->by_name.arena = arena;
    TRY(text_check_no_nul(text));
    obsolete->successor = arena_array(arena, count_lines(text), sizeof *obsolete->successor);
    if (!obsolete->successor) return no_memory(text);
    Words reader = {.text = text, .at = text->data};
    bool failed = false;
    do {
        const char *tag = next_word(&reader, arena, &failed);
        if (!tag || strcmp(tag, "OBSLTE") != 0) continue;
        const char *date = next_word(&reader, arena, &failed);
        char *old = date ? next_word(&reader, arena, &failed) : NULL;
        if (!old && !failed)
            return status_fail_at(ERR_INPUT, text->name, reader.line + 1, "expected OBSLTE DATE ID SUCCESSOR");
        char *successor = old ? next_word(&reader, arena, &failed) : NULL;
        if (failed) return no_memory(text);
        if (!successor) continue;
        lower_case(old);
        lower_case(successor);
        int64_t place;
        TRY(names_add(&obsolete->by_name, old, obsolete->count, &place));
        if (place == obsolete->count) obsolete->successor[obsolete->count++] = successor;
    } while (next_line(&reader));
    return failed ? no_memory(text) : OK;
}

const char *archive_current_entry(const Archive *archive, const char *entry_id)
{
    enum { LONGEST = 32 }; /* a successor may be superseded in turn; the bound ends a circle */
    for (int step = 0; step < LONGEST; step++) {
        int64_t place = names_find(&archive->obsolete.by_name, entry_id);
        if (place < 0) break;
        entry_id = archive->obsolete.successor[place];
    }
    return entry_id;
}

/* --- clusters -------------------------------------------------------------------------------------------------- */

/* Entries in lower case, chain or entity as it is: 2Q2K_A and 2q2k_A are one. */
static void normalise(char *name)
{
    for (; *name && *name != '_'; name++) *name = (char)tolower((unsigned char)*name);
}

Status archive_clusters_parse(const Text *text, Arena *arena, ClusterTable *table)
{
    table->by_name.arena = arena;
    TRY(text_check_no_nul(text));
    table->size = arena_array(arena, count_lines(text), sizeof *table->size);
    if (!table->size) return no_memory(text);
    Words reader = {.text = text, .at = text->data};
    bool failed = false;
    do {
        for (char *word; (word = next_word(&reader, arena, &failed));) {
            int64_t cluster;
            normalise(word);
            TRY(names_add(&table->by_name, word, reader.line, &cluster));
            if (cluster != reader.line)
                return status_fail_at(ERR_INPUT, text->name, reader.line + 1,
                                      "%.60s is also in the cluster of line %lld", word, (long long)cluster + 1);
            table->size[reader.line]++;
        }
        if (failed) return no_memory(text);
        table->clusters = reader.line + 1;
    } while (next_line(&reader));
    if (table->by_name.count == 0) return status_fail_at(ERR_INPUT, text->name, 0, "no clusters, expected one a line");
    return OK;
}

Status archive_read_clusters(const char *path, Arena *arena, ClusterTable **table_out)
{
    Text text = {0};
    ClusterTable *table = arena_alloc(arena, sizeof *table);
    if (!table) return status_fail(ERR_MEMORY, "%.400s: out of memory", path);
    TRY(text_read(path, &text));
    Status status = archive_clusters_parse(&text, arena, table);
    text_close(&text);
    TRY(status);
    *table_out = table;
    return OK;
}

int64_t archive_cluster_count(const ClusterTable *table)
{
    return table->clusters;
}

int64_t archive_cluster_find(const ClusterTable *table, const char *name)
{
    char copy[64];
    if (strlen(name) >= sizeof copy) return -1;
    strcpy(copy, name);
    normalise(copy);
    return names_find(&table->by_name, copy);
}

int64_t archive_cluster_size(const ClusterTable *table, int64_t cluster)
{
    return cluster >= 0 && cluster < table->clusters ? table->size[cluster] : 0;
}
