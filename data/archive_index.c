#include <string.h>
#include <sys/stat.h>

#include "data/archive_internal.h"
#include "data/json.h"

typedef struct IndexReader {
    const Text *text;
    const char *path, *folder;
    const DataLog *log;
    Arena *arena;
    AlignmentIndex *index;
    NameMap texts; /* names of files and databases repeat for every chain: kept once */
    struct Name {
        const char *text;
        const char *path; /* of a database; NULL before it is looked for */
        int64_t size;
    } * name; /* by number in `texts` */
    int64_t name_count, name_capacity;
} IndexReader;

static Status no_memory(const IndexReader *reader)
{
    return status_fail_at(ERR_MEMORY, reader->path, 0, "no memory for the index");
}

static Status chain_fail(const IndexReader *reader, const char *chain, const char *what)
{
    return status_fail_at(ERR_INPUT, reader->path, json_line(reader->text, chain), "chain \"%.60s\": %s", chain, what);
}

/* The number of a text that may be new. */
static Status intern(IndexReader *reader, const char *text, int64_t *number_out)
{
    *number_out = names_find(&reader->texts, text);
    if (*number_out >= 0) return OK;
    if (reader->name_count == reader->name_capacity) {
        int64_t capacity = reader->name_capacity ? 2 * reader->name_capacity : 64;
        struct Name *names = arena_array(reader->arena, (size_t)capacity, sizeof *names);
        if (!names) return no_memory(reader);
        if (reader->name_count) memcpy(names, reader->name, (size_t)reader->name_count * sizeof *names);
        reader->name = names;
        reader->name_capacity = capacity;
    }
    const char *copy = arena_strdup(reader->arena, text);
    if (!copy) return no_memory(reader);
    TRY(names_add(&reader->texts, copy, reader->name_count, NULL));
    reader->name[reader->name_count] = (struct Name){.text = copy};
    *number_out = reader->name_count++;
    return OK;
}

/* A database must be a file below the folder of the index. */
static Status find_db(IndexReader *reader, const char *chain, const char *db, struct Name *db_out)
{
    int64_t number = 0;
    struct stat info;
    TRY(intern(reader, db, &number));
    struct Name *found = &reader->name[number];
    if (!found->path) {
        if (!*db || *db == '/' || strstr(db, ".."))
            return status_fail_at(ERR_INPUT, reader->path, json_line(reader->text, chain),
                                  "chain \"%.60s\": db \"%.100s\" leaves the folder", chain, db);
        const char *path = arena_printf(reader->arena, "%s/%s", reader->folder, db);
        if (!path) return no_memory(reader);
        if (stat(path, &info) != 0 || !S_ISREG(info.st_mode))
            return status_fail_at(ERR_INPUT, reader->path, json_line(reader->text, chain),
                                  "chain \"%.60s\": no database %.300s", chain, path);
        found->path = path;
        found->size = info.st_size;
    }
    *db_out = *found;
    return OK;
}

static Status take_file(IndexReader *reader, const char *chain, const cJSON *item, const struct Name *db)
{
    const cJSON *name = cJSON_IsArray(item) && cJSON_GetArraySize(item) == 3 ? item->child : NULL;
    ArchiveFile *file = &reader->index->file[reader->index->files];
    int64_t number = 0;
    if (!cJSON_IsString(name)) return chain_fail(reader, chain, "expected files as [name, offset, size]");
    if (!json_whole_number(name->next, 0, &file->offset) || !json_whole_number(name->next->next, 0, &file->size))
        return status_fail_at(ERR_INPUT, reader->path, json_line(reader->text, chain),
                              "chain \"%.60s\", file \"%.60s\": offset %g and size %g, expected whole numbers", chain,
                              name->valuestring, name->next->valuedouble, name->next->next->valuedouble);
    if (file->offset > db->size || file->size > db->size - file->offset)
        return status_fail_at(ERR_INPUT, reader->path, json_line(reader->text, chain),
                              "chain \"%.60s\", file \"%.60s\": bytes %lld + %lld of %.200s, which has %lld", chain,
                              name->valuestring, (long long)file->offset, (long long)file->size, db->path,
                              (long long)db->size);
    TRY(intern(reader, name->valuestring, &number));
    file->name = reader->name[number].text;
    file->path = db->path;
    reader->index->files++;
    return OK;
}

/* {"db": file, "files": [...]} of a super index, or [...] of the index of one database. */
static Status take_chain(IndexReader *reader, const cJSON *item, const char *own_db)
{
    AlignmentIndex *index = reader->index;
    const char *chain = item->string, *db = own_db;
    const cJSON *files = item, *file;
    struct Name found = {0};
    int64_t place = index->chains;
    if (!archive_is_name(chain)) return chain_fail(reader, chain, "expected a name PDBID_chain");
    if (cJSON_IsObject(item)) {
        db = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "db"));
        files = cJSON_GetObjectItemCaseSensitive(item, "files");
        if (!db) return chain_fail(reader, chain, "no \"db\"");
        if (!files) return chain_fail(reader, chain, "no \"files\"");
    }
    if (!cJSON_IsArray(files)) return chain_fail(reader, chain, "files are not a list");
    TRY(find_db(reader, chain, db, &found));
    const char *name = arena_strdup(reader->arena, chain);
    if (!name) return no_memory(reader);
    TRY(names_add(&index->by_name, name, place, &place));
    if (place < index->chains)
        data_warn(reader->log, reader->path, 0, "chain %.60s is listed twice: the last one counts", chain);
    else
        index->chains++;
    index->chain[place] = (IndexedChain){.name = name, .db = found.path, .first = index->files};
    cJSON_ArrayForEach(file, files) TRY(take_file(reader, chain, file, &found));
    index->chain[place].count = index->files - index->chain[place].first;
    return OK;
}

static Status count_items(const IndexReader *reader, const cJSON *root)
{
    size_t chains = 0, files = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        const cJSON *list = cJSON_IsObject(item) ? cJSON_GetObjectItemCaseSensitive(item, "files") : item;
        chains++;
        files += (size_t)cJSON_GetArraySize(list);
    }
    reader->index->chain = arena_array(reader->arena, chains, sizeof *reader->index->chain);
    reader->index->file = arena_array(reader->arena, files, sizeof *reader->index->file);
    return reader->index->chain && reader->index->file ? OK : no_memory(reader);
}

/* "x/0.index" -> "0.db" */
static Status own_database(const IndexReader *reader, const char **db_out)
{
    const char *slash = strrchr(reader->path, '/'), *name = slash ? slash + 1 : reader->path;
    const char *dot = strrchr(name, '.');
    *db_out = arena_printf(reader->arena, "%.*s.db", (int)(dot ? dot - name : (long)strlen(name)), name);
    return *db_out ? OK : no_memory(reader);
}

static Status read_items(IndexReader *reader, const cJSON *root)
{
    const char *own_db = NULL;
    const cJSON *item;
    TRY(own_database(reader, &own_db));
    TRY(count_items(reader, root));
    cJSON_ArrayForEach(item, root) TRY(take_chain(reader, item, own_db));
    return OK;
}

Status archive_index_parse(const Text *text, const char *db_folder, const DataLog *log, Arena *arena,
                           AlignmentIndex *index_out)
{
    const char *slash = strrchr(text->name, '/');
    cJSON *root = NULL;
    IndexReader reader = {.text = text,
                          .path = text->name,
                          .folder = db_folder,
                          .log = log,
                          .arena = arena,
                          .index = index_out,
                          .texts = {.arena = arena}};
    index_out->by_name.arena = arena;
    if (!reader.folder)
        reader.folder =
            slash ? arena_strndup(arena, text->name, (size_t)(slash - text->name)) : arena_strdup(arena, ".");
    if (!reader.folder) return no_memory(&reader);
    TRY(json_parse_object(text, &root));
    Status status = read_items(&reader, root);
    cJSON_Delete(root);
    return status;
}
