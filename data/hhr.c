#include "data/hhr.h"

#include <ctype.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct Line {
    const char *at, *end;
} Line;

typedef struct Reader {
    const Text *text;
    Arena *arena;
    const char *next;
} Reader;

/* One side (query or template) of a hit, gathered over its blocks. */
typedef struct Side {
    const char *what;
    char *row;
    int32_t *index;
    int64_t length, block; /* block: width of the last piece, 0 when taken */
} Side;

static Status fail_here(const Reader *reader, Line line, const char *what)
{
    int shown = (int)(line.end - line.at < 80 ? line.end - line.at : 80);
    return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, line.at), "%s: \"%.*s\"", what, shown,
                          line.at);
}

static bool next_line(Reader *reader, Line *line_out)
{
    const char *stop = reader->text->data + reader->text->size;
    if (reader->next >= stop) return false;
    const char *newline = memchr(reader->next, '\n', (size_t)(stop - reader->next));
    const char *end = newline ? newline : stop;
    *line_out = (Line){reader->next, end};
    reader->next = newline ? newline + 1 : stop;
    while (line_out->end > line_out->at && line_out->end[-1] == '\r') line_out->end--;
    return true;
}

static bool starts(Line line, const char *text)
{
    size_t length = strlen(text);
    return (size_t)(line.end - line.at) >= length && memcmp(line.at, text, length) == 0;
}

/* At most nine digits: no sequence is longer, and the sums below cannot overflow. */
static bool take_number(Line *line, int64_t *number_out)
{
    const char *at = line->at;
    int64_t number = 0;
    while (at < line->end && (*at == ' ' || *at == '\t')) at++;
    const char *first = at;
    for (; at < line->end && isdigit((unsigned char)*at); at++) {
        if (at - first == 9) return false;
        number = 10 * number + (*at - '0');
    }
    if (at == first) return false;
    line->at = at;
    *number_out = number;
    return true;
}

/* The value after KEY= in the summary line. */
static bool find_value(Line line, const char *key, double *value_out)
{
    char *found = memmem(line.at, (size_t)(line.end - line.at), key, strlen(key));
    if (!found) return false;
    char number[64], *stop;
    size_t length = 0;
    for (const char *at = found + strlen(key);
         at < line.end && length < sizeof number - 1 && !isspace((unsigned char)*at);)
        number[length++] = *at++;
    number[length] = '\0';
    *value_out = strtod(number, &stop);
    return stop != number && isfinite(*value_out);
}

static Status parse_summary(const Reader *reader, Line line, TemplateHit *hit)
{
    static const char *const keys[] = {"Probab=", "E-value=", "Score=", "Identities=", "Similarity="};
    double columns, value;
    bool good = find_value(line, "Aligned_cols=", &columns) && find_value(line, "Sum_probs=", &hit->sum_probs);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) good = good && find_value(line, keys[i], &value);
    if (!good || columns < 0 || columns > 1e9 || columns != floor(columns))
        return fail_here(reader, line,
                         "expected a summary line with Probab= E-value= Score= Aligned_cols= Identities= Similarity= "
                         "Sum_probs=, found");
    hit->aligned_columns = (int64_t)columns;
    return OK;
}

static Status parse_name(const Reader *reader, Line line, TemplateHit *hit)
{
    if (!starts(line, ">")) return fail_here(reader, line, "expected '>' and the name of the hit, found");
    const char *at = line.at + 1, *word_end = at;
    while (word_end < line.end && *word_end != ' ' && *word_end != '\t') word_end++;
    hit->name = arena_strndup(reader->arena, at, (size_t)(word_end - at));
    hit->description = arena_strndup(reader->arena, at, (size_t)(line.end - at));
    if (!hit->name || !hit->description) return status_fail(ERR_MEMORY, "%.400s: out of memory", reader->text->name);
    char entry[16], chain[16];
    if (hhr_split_name(hit->name, entry, sizeof entry, chain, sizeof chain) != OK)
        return fail_here(reader, line, "expected a hit named PDBID_chain, found");
    return OK;
}

/* "Q query             1 GMEG-..SE   80 (84)": HHsearch writes the name in columns 2 to 15. */
static Status parse_piece(const Reader *reader, Line line, Side *side)
{
    enum { NUMBERS_FROM = 17 };
    const Line whole = line;
    int64_t start = 0, end = 0, total = 0;
    if (side->block) return fail_here(reader, whole, "two rows of one side in a block");
    if (line.end - line.at <= NUMBERS_FROM) return fail_here(reader, whole, "row too short");
    line.at += NUMBERS_FROM;
    if (!take_number(&line, &start)) return fail_here(reader, whole, "expected a start number (at most 9 digits)");
    while (line.at < line.end && *line.at == ' ') line.at++;
    const char *row = line.at;
    while (line.at < line.end && (isalpha((unsigned char)*line.at) || *line.at == '-')) line.at++;
    int64_t width = line.at - row, letters = 0;
    bool good = take_number(&line, &end);
    while (line.at < line.end && *line.at == ' ') line.at++;
    good = good && line.at < line.end && *line.at++ == '(' && take_number(&line, &total);
    if (!good || width == 0) return fail_here(reader, whole, "expected START ROW END (LENGTH)");
    for (int64_t i = 0; i < width; i++) letters += row[i] != '-';
    if (start < 1 || end - start + 1 != letters || end > total)
        return fail_here(reader, whole, "start and end do not match the letters of the row");
    int64_t index = start - 1;
    for (int64_t i = 0; i < width; i++) {
        side->row[side->length + i] = (char)toupper((unsigned char)row[i]);
        side->index[side->length + i] = row[i] == '-' ? -1 : (int32_t)index++;
    }
    side->length += width;
    side->block = width;
    return OK;
}

static bool is_sequence_row(Line line, char side)
{
    static const char *const others[] = {"ss_dssp", "ss_pred", "ss_conf", "sa_dssp", "Consensus"};
    if (line.end - line.at < 2 || line.at[0] != side || line.at[1] != ' ') return false;
    Line rest = {line.at + 2, line.end};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (starts(rest, others[i])) return false;
    return true;
}

static Status check_hit(const Reader *reader, Line first, const Side *query, const Side *template, TemplateHit *hit)
{
    if (query->block || query->length != template->length || query->length == 0)
        return fail_here(reader, first, "the hit's query and template rows differ in number (truncated?)");
    int64_t aligned = 0;
    for (int64_t i = 0; i < query->length; i++) aligned += query->row[i] != '-' && template->row[i] != '-';
    if (aligned != hit->aligned_columns)
        return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, first.at),
                              "the hit has %lld aligned columns, expected the %lld of its summary (truncated?)",
                              (long long)aligned, (long long)hit->aligned_columns);
    hit->query = query->row;
    hit->query_indices = query->index;
    hit->hit_sequence = template->row;
    hit->hit_indices = template->index;
    hit->length = query->length;
    return OK;
}

/* From the line after "No N" to the next "No " or the end. Rows cannot be longer than the section. */
static Status parse_alignment(Reader *reader, Line first, const char *section_end, TemplateHit *hit)
{
    size_t room = (size_t)(section_end - reader->next) + 1;
    Side sides[2] = {{.what = "query"}, {.what = "template"}};
    for (int s = 0; s < 2; s++) {
        sides[s].row = arena_alloc(reader->arena, room);
        sides[s].index = arena_array(reader->arena, room, sizeof *sides[s].index);
        if (!sides[s].row || !sides[s].index)
            return status_fail(ERR_MEMORY, "%.400s: out of memory", reader->text->name);
    }
    Line line;
    while (reader->next < section_end && next_line(reader, &line)) {
        if (is_sequence_row(line, 'Q')) {
            TRY(parse_piece(reader, line, &sides[0]));
        } else if (is_sequence_row(line, 'T')) {
            TRY(parse_piece(reader, line, &sides[1]));
            if (sides[0].block != sides[1].block)
                return fail_here(reader, line, "the template row is not as wide as the query row above it");
            sides[0].block = sides[1].block = 0;
        }
    }
    return check_hit(reader, first, &sides[0], &sides[1], hit);
}

static const char *find_section(const Text *text, const char *from)
{
    const char *stop = text->data + text->size;
    while (from < stop) {
        if (stop - from >= 3 && memcmp(from, "No ", 3) == 0) return from;
        const char *newline = memchr(from, '\n', (size_t)(stop - from));
        from = newline ? newline + 1 : stop;
    }
    return stop;
}

static Status parse_hit(Reader *reader, TemplateHit *hit)
{
    Line first, line;
    const char *section_end;
    if (!next_line(reader, &first)) return status_fail(ERR_INTERNAL, "no hit section");
    Line number = {first.at + 2, first.end};
    if (!take_number(&number, &hit->index)) return fail_here(reader, first, "expected No and a number, found");
    section_end = find_section(reader->text, reader->next);
    if (!next_line(reader, &line)) return fail_here(reader, first, "the file ends inside this hit");
    TRY(parse_name(reader, line, hit));
    if (!next_line(reader, &line)) return fail_here(reader, first, "the file ends inside this hit");
    TRY(parse_summary(reader, line, hit));
    return parse_alignment(reader, first, section_end, hit);
}

/* Lines of the table above the hits: "  1 2Q2K_A Hypothetical...". HHsearch lists as many as it shows, unless asked
 * otherwise. */
static int64_t count_table(const Text *text, const char *first_hit)
{
    Reader reader = {.text = text, .next = text->data};
    Line line;
    int64_t rows = 0, number;
    bool inside = false;
    while (reader.next < first_hit && next_line(&reader, &line)) {
        if (inside && take_number(&line, &number)) rows++;
        inside = inside || starts(line, " No Hit");
    }
    return rows;
}

Status hhr_parse(const Text *text, const DataLog *log, Arena *arena, TemplateHits *hits_out)
{
    const char *stop = text->data + text->size, *first = find_section(text, text->data);
    TemplateHits hits = {0};
    TRY(text_check_no_nul(text));
    for (const char *at = first; at < stop; at = find_section(text, at + 3)) hits.count++;
    int64_t listed = count_table(text, first);
    if (hits.count == 0)
        data_warn(log, text->name, 0, "no hits (%lld in the table)", (long long)listed);
    else if (hits.count < listed)
        data_warn(log, text->name, 0, "%lld hits, the table lists %lld: truncated?", (long long)hits.count,
                  (long long)listed);
    hits.hit = arena_array(arena, (size_t)hits.count, sizeof *hits.hit);
    if (!hits.hit) return status_fail(ERR_MEMORY, "%.400s: no memory for %lld hits", text->name, (long long)hits.count);
    Reader reader = {text, arena, first};
    for (int64_t i = 0; i < hits.count; i++) {
        TRY(parse_hit(&reader, &hits.hit[i]));
        reader.next = find_section(text, reader.next);
    }
    *hits_out = hits;
    return OK;
}

Status hhr_split_name(const char *name, char *entry_out, size_t entry_size, char *chain_out, size_t chain_size)
{
    const char *bar = strchr(name, '_');
    size_t entry = bar ? (size_t)(bar - name) : 0, chain = bar ? strlen(bar + 1) : 0;
    bool good = entry >= 4 && entry < entry_size && chain >= 1 && chain < chain_size;
    for (size_t i = 0; good && i < entry; i++) good = isalnum((unsigned char)name[i]);
    for (size_t i = 0; good && i < chain; i++) good = isalnum((unsigned char)bar[1 + i]) || bar[1 + i] == '.';
    if (!good) return status_fail(ERR_INPUT, "\"%.60s\": expected a name PDBID_chain", name);
    for (size_t i = 0; i < entry; i++) entry_out[i] = (char)tolower((unsigned char)name[i]);
    entry_out[entry] = '\0';
    memcpy(chain_out, bar + 1, chain + 1);
    return OK;
}
