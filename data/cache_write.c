#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/cache.h"
#include "engine/output.h"

/* The shortest decimal number that is the same float, with a point, as Python writes it. */
static void print_real(FILE *stream, float value)
{
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    fprintf(stream, strpbrk(text, ".e") ? "%s" : "%s.0", text);
}

/* Names and sequences hold nothing that JSON would want escaped: archive_is_name and the letters of the readers. */
static void print_chain(FILE *stream, const ChainRecord *record)
{
    fprintf(stream,
            "    \"%s\": {\n        \"release_date\": \"%s\",\n        \"seq\": \"%s\",\n        \"resolution\": ",
            record->chain, record->release_date, record->sequence);
    print_real(stream, record->resolution);
    fprintf(stream, ",\n        \"cluster_size\": %lld\n    }", (long long)record->cluster_size);
}

typedef enum { CLUSTER_SIZES, CHAIN_IDS, SEQUENCES } Member;

static void print_list(FILE *stream, const char *key, const ChainRecord *record, int64_t count, Member member)
{
    fprintf(stream, "        \"%s\": [", key);
    for (int64_t i = 0; i < count; i++) {
        fprintf(stream, "%s\n            ", i ? "," : "");
        if (member == CLUSTER_SIZES)
            fprintf(stream, "%lld", (long long)record[i].cluster_size);
        else
            fprintf(stream, "\"%s\"", member == CHAIN_IDS ? record[i].chain_id : record[i].sequence);
    }
    fprintf(stream, "\n        ],\n");
}

static void print_entry(FILE *stream, const ChainRecord *record, int64_t count)
{
    fprintf(stream, "    \"%s\": {\n        \"release_date\": \"%s\",\n", record->entry_id, record->release_date);
    print_list(stream, "cluster_sizes", record, count, CLUSTER_SIZES);
    print_list(stream, "chain_ids", record, count, CHAIN_IDS);
    print_list(stream, "seqs", record, count, SEQUENCES);
    fprintf(stream, "        \"no_chains\": %lld,\n        \"resolution\": ", (long long)count);
    print_real(stream, record->resolution);
    fprintf(stream, "\n    }");
}

static void print_table(FILE *stream, const ChainTable *table, bool by_entry)
{
    fprintf(stream, "{");
    for (int64_t i = 0, next; i < table->count; i = next) {
        const ChainRecord *record = &table->record[i];
        for (next = i + 1; by_entry && next < table->count; next++)
            if (strcmp(table->record[next].entry_id, record->entry_id) != 0) break;
        fprintf(stream, "%s\n", i ? "," : "");
        if (by_entry)
            print_entry(stream, record, next - i);
        else
            print_chain(stream, record);
    }
    fprintf(stream, "\n}\n");
}

static Status write_table(const ChainTable *table, bool by_entry, const char *path)
{
    Output output;
    TRY(output_open(path, CACHE_BEGINS, &output));
    print_table(output.file, table, by_entry);
    return output_close(&output);
}

Status cache_write_mmcif(const ChainTable *table, const char *path)
{
    return write_table(table, true, path);
}

Status cache_write_chains(const ChainTable *table, const char *path)
{
    return write_table(table, false, path);
}
