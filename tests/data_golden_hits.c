/* Parsed hhr files: templates/NAME.hits.json. */
#include <cjson/cJSON.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/hhr.h"
#include "data/text.h"
#include "tests/data_golden.h"

static bool same_text(const cJSON *item, const char *key, const char *ours, char why[256])
{
    const char *expected = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, key));
    if (expected && strcmp(expected, ours) == 0) return true;
    snprintf(why, 256, "%s is %.90s, expected %.90s", key, ours, expected ? expected : "(none)");
    return false;
}

static bool same_number(const cJSON *item, const char *key, double ours, char why[256])
{
    const cJSON *expected = cJSON_GetObjectItemCaseSensitive(item, key);
    if (cJSON_IsNumber(expected) && expected->valuedouble == ours) return true;
    snprintf(why, 256, "%s is %g, expected %g", key, ours, expected ? expected->valuedouble : -1.0);
    return false;
}

static bool same_indices(const cJSON *item, const char *key, const int32_t *ours, int64_t length, char why[256])
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(item, key), *index;
    int64_t i = 0;
    cJSON_ArrayForEach(index, list)
    {
        if (i < length && index->valuedouble == ours[i]) {
            i++;
            continue;
        }
        snprintf(why, 256, "%s differs at column %lld", key, (long long)i);
        return false;
    }
    if (i == length) return true;
    snprintf(why, 256, "%s has %lld columns, expected %lld", key, (long long)length, (long long)i);
    return false;
}

static bool same_hit(const cJSON *item, const TemplateHit *hit, char why[256])
{
    return same_number(item, "index", (double)hit->index, why) && same_text(item, "name", hit->description, why) &&
           same_number(item, "aligned_cols", (double)hit->aligned_columns, why) &&
           same_number(item, "sum_probs", hit->sum_probs, why) && same_text(item, "query", hit->query, why) &&
           same_text(item, "hit_sequence", hit->hit_sequence, why) &&
           same_indices(item, "indices_query", hit->query_indices, hit->length, why) &&
           same_indices(item, "indices_hit", hit->hit_indices, hit->length, why);
}

static bool same_hits(const cJSON *list, const TemplateHits *hits, char why[256])
{
    char what[256];
    if (cJSON_GetArraySize(list) != hits->count) {
        snprintf(why, 256, "%lld hits, expected %d", (long long)hits->count, cJSON_GetArraySize(list));
        return false;
    }
    int64_t i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!same_hit(item, &hits->hit[i], what)) {
            snprintf(why, 256, "hit %lld: %.200s", (long long)i + 1, what);
            return false;
        }
        i++;
    }
    return true;
}

/* The hits of a chain, in whichever layout has them. */
static const char *find_hhr(const Golden *golden, const char *chain, Arena *arena)
{
    const char *const places[] = {golden_path(arena, golden->real, "pdb/%s/hhr/pdb70_hits.hhr", chain),
                                  golden_path(arena, golden->real, "alignments/%s/pdb70_hits.hhr", chain),
                                  golden_path(arena, golden->real, "extra/%s/pdb70_hits.hhr", chain)};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (golden_exists(places[i])) return places[i];
    return NULL;
}

static void check_chain(Golden *golden, const char *file_name, const char *chain)
{
    Arena arena = {0};
    Text json = {0}, text = {0};
    TemplateHits hits;
    cJSON *list = NULL;
    char why[256];
    const char *hhr = find_hhr(golden, chain, &arena);
    if (!hhr) {
        golden_fail(golden, chain, "no pdb70_hits.hhr for it");
    } else if (text_read(golden_path(&arena, golden->golden, "templates/%s", file_name), &json) != OK ||
               text_read(hhr, &text) != OK || hhr_parse(&text, NULL, &arena, &hits) != OK) {
        golden_fail(golden, chain, "%s", status_text());
    } else {
        list = cJSON_ParseWithLength(json.data, json.size);
        if (!same_hits(list, &hits, why))
            golden_fail(golden, chain, "%s", why);
        else
            golden_pass(golden, "%s: %lld hits", chain, (long long)hits.count);
    }
    cJSON_Delete(list);
    text_close(&json);
    text_close(&text);
    arena_free(&arena);
}

void golden_hits(Golden *golden)
{
    static const char ending[] = ".hits.json";
    Arena arena = {0};
    struct dirent **entry;
    int count = scandir(golden_path(&arena, golden->golden, "templates"), &entry, NULL, alphasort);
    if (count < 0) golden_skip(golden, "templates", "no such folder");
    for (int i = 0; i < count; i++) {
        char chain[256];
        size_t length = strlen(entry[i]->d_name), tail = sizeof ending - 1;
        if (length > tail && strcmp(entry[i]->d_name + length - tail, ending) == 0) {
            snprintf(chain, sizeof chain, "%.*s", (int)(length - tail), entry[i]->d_name);
            check_chain(golden, entry[i]->d_name, chain);
        }
        free(entry[i]);
    }
    if (count >= 0) free(entry);
    arena_free(&arena);
}
