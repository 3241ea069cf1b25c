#include <ctype.h>
#include <string.h>

#include "data/archive_internal.h"
#include "data/date.h"
#include "data/json.h"

/* One object of a cache while it is read: of a chain or of an entry. */
typedef struct CacheItem {
    const Text *text;
    const cJSON *item;
    Arena *arena;
} CacheItem;

static Status item_fail(const CacheItem *cache, const char *key, const char *expected)
{
    char shown[64];
    const cJSON *found = cJSON_GetObjectItemCaseSensitive(cache->item, key);
    return status_fail_at(ERR_INPUT, cache->text->name, json_line(cache->text, cache->item->string),
                          "\"%.60s\": %s is %s, expected %s", cache->item->string, key, json_found(found, shown),
                          expected);
}

static Status item_odd(const CacheItem *cache, const char *expected)
{
    char shown[64];
    return status_fail_at(ERR_INPUT, cache->text->name, json_line(cache->text, cache->item->string),
                          "\"%.60s\" is %s, %s", cache->item->string, json_found(cache->item, shown), expected);
}

/* "" stands for an unknown date in caches written here. */
static Status take_date(const CacheItem *cache, char *date_out)
{
    const char *date = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(cache->item, "release_date"));
    if (!date || (*date && !date_is_day(date, strlen(date))))
        return item_fail(cache, "release_date", "a day as \"YYYY-MM-DD\"");
    strcpy(date_out, date);
    return OK;
}

static Status take_resolution(const CacheItem *cache, float *resolution_out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(cache->item, "resolution");
    if (cJSON_IsNull(item)) {
        *resolution_out = 0;
        return OK;
    }
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < 1e6))
        return item_fail(cache, "resolution", "a number of Angstrom, 0 when unknown");
    *resolution_out = (float)item->valuedouble;
    return OK;
}

static Status take_sequence(const CacheItem *cache, const cJSON *item, const char *key, char **sequence_out)
{
    const char *sequence = cJSON_GetStringValue(item);
    bool good = sequence && *sequence;
    for (const char *c = good ? sequence : ""; *c && good; c++) good = isalpha((unsigned char)*c);
    if (!good) return item_fail(cache, key, "letters");
    *sequence_out = arena_strdup(cache->arena, sequence);
    return *sequence_out ? OK : status_fail(ERR_MEMORY, "%.400s: out of memory", cache->text->name);
}

static Status take_cluster_size(const CacheItem *cache, const cJSON *item, const char *key, int64_t *size_out)
{
    *size_out = -1;
    if (!item) return OK;
    if (!json_whole_number(item, -1, size_out)) return item_fail(cache, key, "a whole number, -1 for no cluster");
    return OK;
}

static Status take_names(const CacheItem *cache, const char *entry, const char *chain, ChainRecord *record)
{
    record->entry_id = arena_strdup(cache->arena, entry);
    record->chain_id = arena_strdup(cache->arena, chain);
    record->chain = arena_printf(cache->arena, "%s_%s", entry, chain);
    if (record->entry_id && record->chain_id && record->chain) return OK;
    return status_fail(ERR_MEMORY, "%.400s: out of memory", cache->text->name);
}

/* --- chain_data_cache.json ------------------------------------------------------------------------------------- */

static Status take_chain(const CacheItem *cache, ChainRecord *record)
{
    const char *name = cache->item->string, *bar = strchr(name, '_');
    if (!archive_is_name(name) || !bar || bar == name || !bar[1])
        return item_odd(cache, "expected a chain named PDBID_chain");
    if (!cJSON_IsObject(cache->item)) return item_odd(cache, "expected an object");
    char *entry = arena_strndup(cache->arena, name, (size_t)(bar - name));
    if (!entry) return status_fail(ERR_MEMORY, "%.400s: out of memory", cache->text->name);
    TRY(take_names(cache, entry, bar + 1, record));
    TRY(take_date(cache, record->release_date));
    TRY(take_resolution(cache, &record->resolution));
    TRY(take_sequence(cache, cJSON_GetObjectItemCaseSensitive(cache->item, "seq"), "seq", &record->sequence));
    const cJSON *size = cJSON_GetObjectItemCaseSensitive(cache->item, "cluster_size");
    return take_cluster_size(cache, size, "cluster_size", &record->cluster_size);
}

static Status chain_records(const Text *text, const cJSON *root, Arena *arena, ChainTable *table)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        const CacheItem cache = {text, item, arena};
        TRY(take_chain(&cache, &table->record[table->count]));
        table->count++;
    }
    return OK;
}

/* --- mmcif_cache.json ------------------------------------------------------------------------------------------ */

static Status take_entry(const CacheItem *cache, ChainTable *table)
{
    ChainRecord common = {0};
    const char *entry = cache->item->string;
    if (!archive_is_name(entry) || !cJSON_IsObject(cache->item))
        return item_odd(cache, "expected a PDB id and an object");
    TRY(take_date(cache, common.release_date));
    TRY(take_resolution(cache, &common.resolution));
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(cache->item, "chain_ids");
    const cJSON *sequences = cJSON_GetObjectItemCaseSensitive(cache->item, "seqs");
    const cJSON *sizes = cJSON_GetObjectItemCaseSensitive(cache->item, "cluster_sizes");
    if (!cJSON_IsArray(ids)) return item_fail(cache, "chain_ids", "a list");
    if (!cJSON_IsArray(sequences) || cJSON_GetArraySize(sequences) != cJSON_GetArraySize(ids))
        return item_fail(cache, "seqs", "a list as long as chain_ids");
    if (sizes && (!cJSON_IsArray(sizes) || cJSON_GetArraySize(sizes) != cJSON_GetArraySize(ids)))
        return item_fail(cache, "cluster_sizes", "a list as long as chain_ids");
    const cJSON *id, *sequence = sequences->child, *size = sizes ? sizes->child : NULL;
    cJSON_ArrayForEach(id, ids)
    {
        ChainRecord *record = &table->record[table->count];
        *record = common;
        if (!cJSON_IsString(id) || !archive_is_name(id->valuestring)) return item_fail(cache, "chain_ids", "names");
        TRY(take_names(cache, entry, id->valuestring, record));
        TRY(take_sequence(cache, sequence, "seqs", &record->sequence));
        TRY(take_cluster_size(cache, size, "cluster_sizes", &record->cluster_size));
        sequence = sequence->next;
        size = size ? size->next : NULL;
        table->count++;
    }
    return OK;
}

static Status entry_records(const Text *text, const cJSON *root, Arena *arena, ChainTable *table)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        const CacheItem cache = {text, item, arena};
        TRY(take_entry(&cache, table));
    }
    return OK;
}

/* --------------------------------------------------------------------------------------------------------------- */

static Status check_table(const Text *text, Arena *arena, const ChainTable *table)
{
    NameMap seen = {.arena = arena};
    if (table->count == 0) return status_fail_at(ERR_INPUT, text->name, 1, "no chains: nothing to train on");
    for (int64_t i = 0; i < table->count; i++) {
        int64_t first;
        TRY(names_add(&seen, table->record[i].chain, i, &first));
        if (first != i)
            return status_fail_at(ERR_INPUT, text->name, json_line(text, table->record[i].chain),
                                  "chain %.60s is listed twice", table->record[i].chain);
    }
    return OK;
}

Status archive_cache_parse(const Text *text, bool by_entry, Arena *arena, ChainTable *table_out)
{
    cJSON *root = NULL;
    const cJSON *item;
    ChainTable table = {0};
    size_t chains = 0;
    TRY(json_parse_object(text, &root));
    cJSON_ArrayForEach(item, root) chains +=
        by_entry ? (size_t)cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(item, "chain_ids")) : 1;
    table.record = arena_array(arena, chains, sizeof *table.record);
    Status status = OK;
    if (!table.record)
        status = status_fail(ERR_MEMORY, "%.400s: no memory for %zu chains", text->name, chains);
    else
        status = (by_entry ? entry_records : chain_records)(text, root, arena, &table);
    cJSON_Delete(root);
    TRY(status);
    TRY(check_table(text, arena, &table));
    *table_out = table;
    return OK;
}

static Status read_cache(const char *path, bool by_entry, Arena *arena, ChainTable *table_out)
{
    Text text = {0};
    TRY(text_read(path, &text));
    Status status = archive_cache_parse(&text, by_entry, arena, table_out);
    text_close(&text);
    return status;
}

Status archive_read_chain_cache(const char *path, Arena *arena, ChainTable *table_out)
{
    return read_cache(path, false, arena, table_out);
}

Status archive_read_mmcif_cache(const char *path, Arena *arena, ChainTable *table_out)
{
    return read_cache(path, true, arena, table_out);
}
