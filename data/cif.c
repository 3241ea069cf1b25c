#include "data/cif.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef enum { END, BARE, QUOTED, TEXT_BLOCK, NAME, LOOP, DATA, OTHER } Kind;

typedef struct Token {
    Kind kind;
    const char *at;
    size_t length;
} Token;

/* Items given one by one wait for the end of the file, as their category may be scattered. */
typedef struct Pairs {
    bool any, looped;
    CifValue value[CIF_COLUMNS];
    const char *at;
} Pairs;

typedef struct Reader {
    const Text *text;
    const char *at, *stop;
    const CifCategory *categories;
    int count;
    void *context;
    Pairs pairs[CIF_CATEGORIES];
} Reader;

/* 1: ends a bare value; the NUL after the text is one. Bytes of other encodings are part of values. */
static const unsigned char ends_value[256] = {['\0'] = 1, [' '] = 1, ['\t'] = 1, ['\r'] = 1, ['\n'] = 1};

static Status fail_at(const Reader *reader, const char *at, const char *what)
{
    return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, at), "%s", what);
}

Status cif_fail(const Text *text, const char *at, const char *what, CifValue value, const char *expected)
{
    int shown = (int)(value.length < 60 ? value.length : 60);
    return status_fail_at(ERR_INPUT, text->name, text_line(text, value.at ? value.at : at), "%s \"%.*s\", expected %s",
                          what, shown, value.at ? value.at : "", expected);
}

/* --- tokens ---------------------------------------------------------------------------------------------------- */

static Kind classify(const char *at, size_t length)
{
    switch (*at) {
    case '_':
        return NAME;
    case 'd':
    case 'D':
        return length >= 5 && strncasecmp(at, "data_", 5) == 0 ? DATA : BARE;
    case 'l':
    case 'L':
        return length == 5 && strncasecmp(at, "loop_", 5) == 0 ? LOOP : BARE;
    case 's':
    case 'S':
        if (length == 5 && strncasecmp(at, "stop_", 5) == 0) return OTHER;
        return length >= 5 && strncasecmp(at, "save_", 5) == 0 ? OTHER : BARE;
    case 'g':
    case 'G':
        return length == 7 && strncasecmp(at, "global_", 7) == 0 ? OTHER : BARE;
    default:
        return BARE;
    }
}

/* A quote ends its value only before a blank, so 'O5'' is O5'. */
static Status quoted_token(Reader *reader, const char *at, Token *token)
{
    const char quote = *at, *from = at + 1;
    for (const char *p = from; p < reader->stop && *p != '\n'; p++) {
        if (*p != quote || !ends_value[(unsigned char)p[1]]) continue;
        *token = (Token){QUOTED, from, (size_t)(p - from)};
        reader->at = p + 1;
        return OK;
    }
    return fail_at(reader, at, "quote not closed on its line");
}

static Status block_token(Reader *reader, const char *at, Token *token)
{
    const char *from = at + 1, *p = at;
    while ((p = memchr(p, '\n', (size_t)(reader->stop - p)))) {
        p++;
        if (*p != ';') continue;
        *token = (Token){TEXT_BLOCK, from, (size_t)(p - 1 - from)};
        reader->at = p + 1;
        return OK;
    }
    return fail_at(reader, at, "text block that starts here is not closed by a line with ;");
}

static inline Status next_token(Reader *reader, Token *token)
{
    const char *p = reader->at;
    for (;;) {
        while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r') p++;
        if (*p != '#') break;
        const char *newline = memchr(p, '\n', (size_t)(reader->stop - p));
        p = newline ? newline : reader->stop;
    }
    if (*p == '\0') {
        if (p < reader->stop) return fail_at(reader, p, "NUL byte, expected text");
        *token = (Token){END, p, 0};
        reader->at = p;
        return OK;
    }
    if (*p == '\'' || *p == '"') return quoted_token(reader, p, token);
    if (*p == ';' && (p == reader->text->data || p[-1] == '\n')) return block_token(reader, p, token);
    const char *from = p;
    do p++;
    while (!ends_value[(unsigned char)*p]);
    reader->at = p;
    *token = (Token){classify(from, (size_t)(p - from)), from, (size_t)(p - from)};
    return OK;
}

static bool is_value(Kind kind)
{
    return kind == BARE || kind == QUOTED || kind == TEXT_BLOCK;
}

/* --- categories ------------------------------------------------------------------------------------------------ */

static size_t category_length(Token name)
{
    const char *dot = memchr(name.at, '.', name.length);
    return dot ? (size_t)(dot - name.at) : name.length;
}

static int find_category(const Reader *reader, Token name)
{
    size_t length = category_length(name);
    for (int i = 0; i < reader->count; i++)
        if (strlen(reader->categories[i].name) == length &&
            strncasecmp(reader->categories[i].name, name.at, length) == 0)
            return i;
    return -1;
}

static int find_column(const CifCategory *category, Token name)
{
    size_t prefix = strlen(category->name) + 1;
    if (name.length <= prefix) return -1;
    for (int i = 0; i < CIF_COLUMNS && category->columns[i]; i++)
        if (strlen(category->columns[i]) == name.length - prefix &&
            strncasecmp(category->columns[i], name.at + prefix, name.length - prefix) == 0)
            return i;
    return -1;
}

static Status check_required(const Reader *reader, const CifCategory *category, const bool *present, const char *at)
{
    for (int i = 0; i < category->required; i++)
        if (!present[i])
            return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, at),
                                  "category %s has no column %s", category->name, category->columns[i]);
    return OK;
}

static CifValue value_of(Token token)
{
    return (CifValue){token.at, token.length, token.kind != BARE};
}

static Status parse_pair(Reader *reader, Token name)
{
    Token value = {.kind = END};
    TRY(next_token(reader, &value));
    if (!is_value(value.kind))
        return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, name.at), "%.*s has no value",
                              (int)(name.length < 80 ? name.length : 80), name.at);
    int which = find_category(reader, name);
    if (which < 0) return OK;
    Pairs *pairs = &reader->pairs[which];
    int column = find_column(&reader->categories[which], name);
    if (pairs->looped || (column >= 0 && pairs->value[column].at))
        return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, name.at), "%.*s is given twice",
                              (int)(name.length < 80 ? name.length : 80), name.at);
    pairs->any = true;
    pairs->at = name.at;
    if (column >= 0) pairs->value[column] = value_of(value);
    return OK;
}

static Status finish_pairs(Reader *reader)
{
    for (int i = 0; i < reader->count; i++) {
        const Pairs *pairs = &reader->pairs[i];
        const CifCategory *category = &reader->categories[i];
        if (!pairs->any || category->skip) continue;
        bool present[CIF_COLUMNS];
        for (int c = 0; c < CIF_COLUMNS; c++) present[c] = pairs->value[c].at != NULL;
        TRY(check_required(reader, category, present, pairs->at));
        TRY(category->row(reader->context, pairs->value, pairs->at));
    }
    return OK;
}

/* --- loops ----------------------------------------------------------------------------------------------------- */

typedef struct Loop {
    const CifCategory *category; /* NULL: not wanted */
    Token name;                  /* of the first column */
    signed char *column;         /* [width] wanted column or -1 */
    size_t width, capacity;
} Loop;

static Status add_column(Reader *reader, Loop *loop, Token name, bool *present)
{
    if (loop->width && (category_length(name) != category_length(loop->name) ||
                        strncasecmp(name.at, loop->name.at, category_length(name)) != 0))
        return fail_at(reader, name.at, "columns of two categories in one loop");
    int column = loop->category ? find_column(loop->category, name) : -1;
    if (column >= 0 && present[column])
        return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, name.at),
                              "%s.%s is named twice in its loop", loop->category->name,
                              loop->category->columns[column]);
    if (column >= 0) present[column] = true;
    if (loop->width == loop->capacity) {
        size_t capacity = loop->capacity ? 2 * loop->capacity : 64;
        signed char *grown = realloc(loop->column, capacity);
        if (!grown) return status_fail(ERR_MEMORY, "%.400s: out of memory", reader->text->name);
        loop->column = grown;
        loop->capacity = capacity;
    }
    loop->column[loop->width++] = (signed char)column;
    return OK;
}

static Status start_loop(Reader *reader, Loop *loop, Token name)
{
    int which = find_category(reader, name);
    loop->name = name;
    if (which < 0) return OK;
    loop->category = &reader->categories[which];
    Pairs *pairs = &reader->pairs[which];
    if (pairs->looped || pairs->any)
        return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, name.at),
                              "category %s is given twice", loop->category->name);
    pairs->looped = true;
    return OK;
}

/* Rows usually start on lines of their own: the first that does not tells where a value was lost. */
static bool starts_line(const Reader *reader, const char *at)
{
    while (at > reader->text->data && (at[-1] == ' ' || at[-1] == '\t' || at[-1] == '\'' || at[-1] == '"')) at--;
    return at == reader->text->data || at[-1] == '\n';
}

/* *token_inout: the first token after the column names; becomes the first after the loop. */
static Status parse_rows(Reader *reader, const Loop *loop, Token *token_inout)
{
    CifValue values[CIF_COLUMNS] = {{0}};
    Token token = *token_inout;
    size_t filled = 0;
    const char *row = token.at, *astray = NULL;
    while (is_value(token.kind)) {
        if (filled == 0) {
            row = token.at;
            if (!astray && !starts_line(reader, row)) astray = row;
        }
        int column = loop->column[filled];
        if (column >= 0) values[column] = value_of(token);
        if (++filled == loop->width) {
            filled = 0;
            if (loop->category) TRY(loop->category->row(reader->context, values, row));
        }
        TRY(next_token(reader, &token));
    }
    if (filled)
        return status_fail_at(ERR_INPUT, reader->text->name, text_line(reader->text, astray ? astray : row),
                              "loop %.*s has a value too many or too few near this line, or the file is truncated: "
                              "its last row has %zu values, expected %zu",
                              (int)(category_length(loop->name) < 60 ? category_length(loop->name) : 60), loop->name.at,
                              filled, loop->width);
    *token_inout = token;
    return OK;
}

/* To the first line that starts a name, a comment, a loop or a block. False if a text block is in the way. */
static bool skip_rows(Reader *reader, const char *from)
{
    const char *line = from;
    for (;;) {
        const char *p = line;
        while (*p == ' ' || *p == '\t' || *p == '\r') p++;
        if (*p == '_' || *p == '#' || p >= reader->stop) break;
        if ((*p == 'l' || *p == 'd') && (strncmp(p, "loop_", 5) == 0 || strncmp(p, "data_", 5) == 0)) break;
        if (*line == ';') return false;
        const char *newline = memchr(p, '\n', (size_t)(reader->stop - p));
        if (!newline) {
            line = reader->stop;
            break;
        }
        line = newline + 1;
    }
    reader->at = line;
    return true;
}

static Status parse_loop(Reader *reader, Token *token_out)
{
    Loop loop = {0};
    Token token = {.kind = END};
    bool present[CIF_COLUMNS] = {false};
    const char *loop_at = reader->at;
    Status status = next_token(reader, &token);
    if (status == OK && token.kind != NAME) return fail_at(reader, loop_at, "loop_ without column names");
    if (status == OK) status = start_loop(reader, &loop, token);
    while (status == OK && token.kind == NAME) {
        status = add_column(reader, &loop, token, present);
        if (status == OK) status = next_token(reader, &token);
    }
    if (status == OK && loop.category) status = check_required(reader, loop.category, present, loop_at);
    if (status == OK && loop.category && loop.category->skip && is_value(token.kind)) {
        /* where a text block is in the way, rows are counted without being used */
        if (token.kind == BARE && skip_rows(reader, token.at)) status = next_token(reader, &token);
        loop.category = NULL;
        if (status == OK && is_value(token.kind)) status = parse_rows(reader, &loop, &token);
    } else if (status == OK) {
        status = parse_rows(reader, &loop, &token);
    }
    free(loop.column);
    *token_out = token;
    return status;
}

Status cif_parse(const Text *text, const CifCategory *categories, int count, void *context, CifValue *block_out)
{
    Reader reader = {.text = text,
                     .at = text->data,
                     .stop = text->data + text->size,
                     .categories = categories,
                     .count = count,
                     .context = context};
    Token token = {.kind = END};
    if (count > CIF_CATEGORIES) return status_fail(ERR_INTERNAL, "%d categories", count);
    if (text->size >= 3 && memcmp(text->data, "\xef\xbb\xbf", 3) == 0) reader.at += 3; /* byte-order mark of UTF-8 */
    TRY(text_check_no_nul(text));
    TRY(next_token(&reader, &token));
    if (token.kind == END) return status_fail_at(ERR_INPUT, text->name, 0, "empty file, expected mmCIF");
    if (token.kind != DATA) return fail_at(&reader, token.at, "not mmCIF: expected data_ and the name of the entry");
    *block_out = (CifValue){token.at + 5, token.length - 5, false};
    TRY(next_token(&reader, &token));
    while (token.kind != END) {
        if (token.kind == NAME) {
            TRY(parse_pair(&reader, token));
            TRY(next_token(&reader, &token));
        } else if (token.kind == LOOP) {
            TRY(parse_loop(&reader, &token));
        } else if (token.kind == DATA) {
            return fail_at(&reader, token.at, "a second data block, expected one entry per file");
        } else {
            return fail_at(&reader, token.at, "a value without a name before it, expected _name, loop_ or the end");
        }
    }
    return finish_pairs(&reader);
}
