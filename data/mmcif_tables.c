#include "data/mmcif_tables.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "data/date.h"
/* Makes room for one more item. */
static Status grow(const MmcifTables *tables, void **items, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity) return OK;
    size_t wanted = *capacity ? 2 * *capacity : 128;
    void *grown = realloc(*items, wanted * size);
    if (!grown) return status_fail_at(ERR_MEMORY, tables->text->name, 0, "no memory for %zu rows", wanted);
    *items = grown;
    *capacity = wanted;
    return OK;
}

#define APPEND(TABLES, LIST_NAME, ...)                                                                                 \
    do {                                                                                                               \
        void *items_ = (TABLES)->LIST_NAME.item;                                                                       \
        TRY(grow((TABLES), &items_, (TABLES)->LIST_NAME.count, &(TABLES)->LIST_NAME.capacity,                          \
                 sizeof *(TABLES)->LIST_NAME.item));                                                                   \
        (TABLES)->LIST_NAME.item = items_;                                                                             \
        (TABLES)->LIST_NAME.item[(TABLES)->LIST_NAME.count++] = __VA_ARGS__;                                           \
    } while (0)

static Status take_entry(void *context, const CifValue *value, const char *at)
{
    (void)at;
    ((MmcifTables *)context)->entry_id = value[0];
    return OK;
}

static Status take_earliest(const MmcifTables *tables, CifValue value, const char *at, char *date)
{
    if (cif_missing(value)) return OK;
    if (!date_is_day(value.at, value.length))
        return cif_fail(tables->text, at, "revision date", value, "a day as YYYY-MM-DD");
    if (*date && memcmp(value.at, date, 10) >= 0) return OK;
    memcpy(date, value.at, 10);
    date[10] = '\0';
    return OK;
}

static Status take_revision(void *context, const CifValue *value, const char *at)
{
    MmcifTables *tables = context;
    return take_earliest(tables, value[0], at, tables->revision_date);
}

static Status take_old_revision(void *context, const CifValue *value, const char *at)
{
    MmcifTables *tables = context;
    return take_earliest(tables, value[0], at, tables->old_revision_date);
}

static void take_resolution(MmcifTables *tables, int source, CifValue value, const char *at)
{
    double number;
    if (cif_missing(value)) return;
    if (!cif_real(value, &number)) {
        /* only the first is told: finding the line of each would take the square of a hostile file's size */
        if (!tables->odd_resolution)
            data_warn(tables->log, tables->text->name, text_line(tables->text, at),
                      "resolution \"%.*s\" is not a number: taken as unknown",
                      (int)(value.length < 60 ? value.length : 60), value.at);
        tables->odd_resolution = true;
    } else if (!(number <= tables->resolution[source])) { /* also when it is NaN; the largest counts */
        tables->resolution[source] = number;
    }
}

static Status take_refine(void *context, const CifValue *value, const char *at)
{
    take_resolution(context, 0, value[0], at);
    return OK;
}

static Status take_reconstruction(void *context, const CifValue *value, const char *at)
{
    take_resolution(context, 1, value[0], at);
    return OK;
}

static Status take_reflections(void *context, const CifValue *value, const char *at)
{
    take_resolution(context, 2, value[0], at);
    return OK;
}

static Status take_method(void *context, const CifValue *value, const char *at)
{
    (void)at;
    MmcifTables *tables = context;
    if (cif_missing(value[0])) return OK;
    enum { LONGEST = 200 }; /* the longest method of the dictionary has 24 letters; hybrid ones are joined */
    int length = (int)(value[0].length < LONGEST ? value[0].length : LONGEST);
    if (tables->method && strlen(tables->method) > LONGEST) return OK;
    tables->method = tables->method ? arena_printf(tables->arena, "%s,%.*s", tables->method, length, value[0].at)
                                    : arena_printf(tables->arena, "%.*s", length, value[0].at);
    return tables->method ? OK : status_fail(ERR_MEMORY, "%.400s: out of memory", tables->text->name);
}

static Status take_monomer(void *context, const CifValue *value, const char *at)
{
    MmcifTables *tables = context;
    int32_t num;
    if (!cif_integer(value[1], &num))
        return cif_fail(tables->text, at, "_entity_poly_seq.num", value[1], "a whole number");
    APPEND(tables, monomers, (Monomer){.entity = value[0], .code = value[2], .num = num});
    return OK;
}

static Status take_component(void *context, const CifValue *value, const char *at)
{
    (void)at;
    MmcifTables *tables = context;
    bool peptide = false;
    for (size_t i = 0; i + 7 <= value[1].length && !peptide; i++)
        peptide = strncasecmp(value[1].at + i, "peptide", 7) == 0;
    APPEND(tables, components, (Component){value[0], peptide});
    return OK;
}

static Status take_asym(void *context, const CifValue *value, const char *at)
{
    (void)at;
    MmcifTables *tables = context;
    APPEND(tables, asyms, (Asym){value[0], value[1]});
    return OK;
}

static Status take_strand(void *context, const CifValue *value, const char *at)
{
    (void)at;
    MmcifTables *tables = context;
    size_t count = tables->strands.count;
    if (cif_missing(value[1]) || (count && cif_equal(tables->strands.item[count - 1].asym, value[0]))) return OK;
    APPEND(tables, strands, (Strand){value[0], value[1]});
    return OK;
}

/* --- atoms ----------------------------------------------------------------------------------------------------- */

enum { ASYM, SEQ, COMPONENT, NAME, X, Y, Z, ALTERNATIVE, OCCUPANCY, AUTHOR, MODEL };

static Status take_coordinate(const MmcifTables *tables, CifValue value, const char *at, float *number_out)
{
    double number;
    if (!cif_real(value, &number) || !isfinite((float)number))
        return cif_fail(tables->text, at, "coordinate", value, "a finite number");
    *number_out = (float)number;
    return OK;
}

static bool in_first_model(MmcifTables *tables, CifValue model)
{
    if (!model.at) {
        tables->models = 1;
        return true;
    }
    if (tables->models && cif_equal(model, tables->last_model)) return tables->models == 1;
    if (!tables->models) tables->first_model = model;
    if (tables->models && cif_equal(model, tables->first_model)) return true; /* chains of one model apart */
    tables->last_model = model;
    return ++tables->models == 1;
}

static Status take_atom(void *context, const CifValue *value, const char *at)
{
    MmcifTables *tables = context;
    tables->has_atoms = true;
    if (!in_first_model(tables, value[MODEL]) || cif_missing(value[SEQ])) return OK;
    AtomRow atom = {.asym = value[ASYM],
                    .author = value[AUTHOR],
                    .component = value[COMPONENT],
                    .name = value[NAME],
                    .alternative = value[ALTERNATIVE],
                    .at = at};
    if (!cif_integer(value[SEQ], &atom.seq))
        return cif_fail(tables->text, at, "label_seq_id", value[SEQ], "a whole number");
    TRY(take_coordinate(tables, value[X], at, &atom.x));
    TRY(take_coordinate(tables, value[Y], at, &atom.y));
    TRY(take_coordinate(tables, value[Z], at, &atom.z));
    double occupancy = 0;
    if (!cif_missing(value[OCCUPANCY]) && !cif_real(value[OCCUPANCY], &occupancy))
        return cif_fail(tables->text, at, "occupancy", value[OCCUPANCY], "a number");
    atom.occupancy = (float)occupancy;
    APPEND(tables, atoms, atom);
    return OK;
}

static const CifCategory categories[] = {
    {"_entry", {"id"}, 1, take_entry, false},
    {"_pdbx_audit_revision_history", {"revision_date"}, 1, take_revision, false},
    {"_database_PDB_rev", {"date"}, 0, take_old_revision, false},
    {"_refine", {"ls_d_res_high"}, 0, take_refine, false},
    {"_em_3d_reconstruction", {"resolution"}, 0, take_reconstruction, false},
    {"_reflns", {"d_resolution_high"}, 0, take_reflections, false},
    {"_exptl", {"method"}, 0, take_method, false},
    {"_entity_poly_seq", {"entity_id", "num", "mon_id"}, 3, take_monomer, false},
    {"_chem_comp", {"id", "type"}, 2, take_component, false},
    {"_struct_asym", {"id", "entity_id"}, 2, take_asym, false},
    {"_pdbx_poly_seq_scheme", {"asym_id", "pdb_strand_id"}, 1, take_strand, false},
    {"_atom_site",
     {[ASYM] = "label_asym_id",
      [SEQ] = "label_seq_id",
      [COMPONENT] = "label_comp_id",
      [NAME] = "label_atom_id",
      [X] = "Cartn_x",
      [Y] = "Cartn_y",
      [Z] = "Cartn_z",
      [ALTERNATIVE] = "label_alt_id",
      [OCCUPANCY] = "occupancy",
      [AUTHOR] = "auth_asym_id",
      [MODEL] = "pdbx_PDB_model_num"},
     7,
     take_atom,
     false},
};

static Status require(const MmcifTables *tables, bool there, const char *category)
{
    if (there) return OK;
    return status_fail_at(ERR_INPUT, tables->text->name, 0, "category %s is missing (truncated?)", category);
}

/* The archive puts a line with # behind every category: a file that has such lines but none at its end may have been
 * cut between two rows, where nothing else shows it. */
static void check_end(const MmcifTables *tables)
{
    const Text *text = tables->text;
    const char *end = text->data + text->size;
    while (end > text->data && strchr(" \t\r\n", end[-1])) end--;
    const char *line = memrchr(text->data, '\n', (size_t)(end - text->data));
    if (!line || line[1] == '#' || !memmem(text->data, text->size, "\n#", 2)) return;
    data_warn(tables->log, text->name, text_line(text, line + 1),
              "the last category is not closed by # as the others: "
              "truncated?");
}

Status mmcif_tables_read(const Text *text, const DataLog *log, bool header_only, Arena *arena, MmcifTables *tables)
{
    const int count = sizeof categories / sizeof *categories;
    CifCategory wanted[sizeof categories / sizeof *categories];
    CifValue block = {0};
    *tables = (MmcifTables){.text = text, .log = log, .arena = arena, .resolution = {NAN, NAN, NAN}};
    memcpy(wanted, categories, sizeof wanted);
    wanted[count - 1].skip = header_only;
    TRY(cif_parse(text, wanted, count, tables, &block));
    if (cif_missing(tables->entry_id)) tables->entry_id = block;
    if (!header_only) TRY(require(tables, tables->has_atoms, "_atom_site"));
    if (!header_only) check_end(tables);
    bool polymers = tables->monomers.count || tables->atoms.count;
    TRY(require(tables, tables->monomers.count || !polymers, "_entity_poly_seq"));
    TRY(require(tables, tables->components.count || !polymers, "_chem_comp"));
    return require(tables, tables->asyms.count || (!polymers && !header_only), "_struct_asym");
}

void mmcif_tables_free(MmcifTables *tables)
{
    free(tables->monomers.item);
    free(tables->components.item);
    free(tables->asyms.item);
    free(tables->strands.item);
    free(tables->atoms.item);
}
