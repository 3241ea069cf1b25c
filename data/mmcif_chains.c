#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/mmcif_tables.h"
#include "data/residue.h"

/* Residues of one entity. */
typedef struct Entity {
    CifValue id;
    const Monomer *first;
    size_t monomers; /* rows, all of one entity */
    int32_t smallest;
    int64_t length; /* different num */
    bool protein;
} Entity;

/* A protein chain while its atoms are placed. */
typedef struct Building {
    const Asym *asym;
    const Entity *entity;
    CifValue author;        /* at == NULL: not known yet */
    Chain *chain;           /* NULL until the first atom (or for good, in header mode) */
    uint64_t *alternatives; /* [L, 37] bit set of the alternative locations seen */
    float *occupancy;       /* [L, 37] of the one kept */
    const CifValue *code;   /* [L] first monomer at each position */
    bool *mixed;            /* [L] more than one monomer */
} Building;

typedef struct Builder {
    MmcifTables *tables;
    Entity *entity;
    size_t entities;
    Building *building; /* sorted by label id */
    size_t buildings;
    int64_t residues; /* of all chains that have arrays */
    uint32_t atom_name[ATOM37_COUNT];
} Builder;

static Status no_memory(const Builder *builder)
{
    return status_fail_at(ERR_MEMORY, builder->tables->text->name, 0, "no memory for the chains");
}

/* --- entities -------------------------------------------------------------------------------------------------- */

static int compare_components(const void *a, const void *b)
{
    return cif_compare(((const Component *)a)->id, ((const Component *)b)->id);
}

/* Stable: rows of one entity keep the order of the file, which is the order of their places in the text. */
static int compare_monomers(const void *a, const void *b)
{
    const Monomer *m = a, *n = b;
    int order = cif_compare(m->entity, n->entity);
    return order ? order : (m->entity.at > n->entity.at) - (m->entity.at < n->entity.at);
}

static bool is_peptide(const MmcifTables *tables, CifValue code)
{
    const Component key = {.id = code}, *found;
    found = bsearch(&key, tables->components.item, tables->components.count, sizeof key, compare_components);
    return found && found->peptide;
}

static Status finish_entity(const Builder *builder, Entity *entity)
{
    const Monomer *row = entity->first;
    entity->smallest = row->num;
    entity->length = 1;
    for (size_t i = 0; i < entity->monomers; i++) {
        entity->protein = entity->protein || is_peptide(builder->tables, row[i].code);
        if (i == 0 || row[i].num == row[i - 1].num) continue;
        if (row[i].num != row[i - 1].num + 1)
            return status_fail_at(
                ERR_INPUT, builder->tables->text->name, text_line(builder->tables->text, row[i].entity.at),
                "_entity_poly_seq.num %d follows %d, expected the same or the next", row[i].num, row[i - 1].num);
        entity->length++;
    }
    return OK;
}

static Status find_entities(Builder *builder)
{
    MmcifTables *tables = builder->tables;
    const size_t count = tables->monomers.count;
    Monomer *monomer = tables->monomers.item;
    if (!count) return OK;
    if (tables->components.count)
        qsort(tables->components.item, tables->components.count, sizeof(Component), compare_components);
    qsort(monomer, count, sizeof *monomer, compare_monomers);
    builder->entity = calloc(count, sizeof *builder->entity);
    if (!builder->entity) return no_memory(builder);
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || !cif_equal(monomer[i].entity, monomer[i - 1].entity))
            builder->entity[builder->entities++] = (Entity){.id = monomer[i].entity, .first = &monomer[i]};
        builder->entity[builder->entities - 1].monomers++;
    }
    for (size_t i = 0; i < builder->entities; i++) TRY(finish_entity(builder, &builder->entity[i]));
    return OK;
}

static int compare_entity(const void *key, const void *entity)
{
    return cif_compare(*(const CifValue *)key, ((const Entity *)entity)->id);
}

/* --- chains ---------------------------------------------------------------------------------------------------- */

static int compare_buildings(const void *a, const void *b)
{
    return cif_compare(((const Building *)a)->asym->id, ((const Building *)b)->asym->id);
}

static int compare_strands(const void *a, const void *b)
{
    return cif_compare(((const Strand *)a)->asym, ((const Strand *)b)->asym);
}

/* One Building per asym of any kind, so that atoms of other polymers are known too. */
static Status start_buildings(Builder *builder)
{
    MmcifTables *tables = builder->tables;
    builder->building = calloc(tables->asyms.count + 1, sizeof *builder->building);
    if (!builder->building) return no_memory(builder);
    if (tables->strands.count) qsort(tables->strands.item, tables->strands.count, sizeof(Strand), compare_strands);
    for (size_t i = 0; i < tables->asyms.count; i++) {
        Building *building = &builder->building[builder->buildings++];
        const Strand key = {.asym = tables->asyms.item[i].id}, *strand = NULL;
        building->asym = &tables->asyms.item[i];
        if (builder->entities)
            building->entity = bsearch(&building->asym->entity, builder->entity, builder->entities,
                                       sizeof *builder->entity, compare_entity);
        if (building->entity && !building->entity->protein) building->entity = NULL;
        if (tables->strands.count)
            strand = bsearch(&key, tables->strands.item, tables->strands.count, sizeof key, compare_strands);
        if (strand) building->author = strand->author;
    }
    if (builder->buildings) qsort(builder->building, builder->buildings, sizeof *builder->building, compare_buildings);
    for (size_t i = 1; i < builder->buildings; i++)
        if (compare_buildings(&builder->building[i - 1], &builder->building[i]) == 0)
            return cif_fail(tables->text, tables->text->data, "_struct_asym.id", builder->building[i].asym->id,
                            "each id once");
    return OK;
}

static Status fill_sequence(Builder *builder, Building *building)
{
    Arena *arena = builder->tables->arena;
    Chain *chain = building->chain;
    const Entity *entity = building->entity;
    size_t length = (size_t)entity->length;
    CifValue *code = calloc(length, sizeof *code);
    building->code = code;
    building->mixed = calloc(length, sizeof *building->mixed);
    chain->length = entity->length;
    chain->sequence = arena_alloc(arena, length + 1);
    chain->aatype = arena_array(arena, length, sizeof *chain->aatype);
    chain->residue_index = arena_array(arena, length, sizeof *chain->residue_index);
    chain->label_id = arena_strndup(arena, building->asym->id.at, building->asym->id.length);
    chain->entity_id = arena_strndup(arena, entity->id.at, entity->id.length);
    if (!code || !building->mixed || !chain->sequence || !chain->aatype || !chain->residue_index || !chain->label_id ||
        !chain->entity_id)
        return no_memory(builder);
    for (size_t i = 0; i < entity->monomers; i++) {
        const Monomer *monomer = &entity->first[i];
        size_t at = (size_t)(monomer->num - entity->smallest);
        if (code[at].at) {
            building->mixed[at] = true;
            continue;
        }
        code[at] = monomer->code;
        chain->sequence[at] = residue_letter_of_monomer(monomer->code.at, monomer->code.length);
        chain->aatype[at] = (int8_t)residue_letter_index(chain->sequence[at]);
        chain->residue_index[at] = (int32_t)at;
    }
    return OK;
}

/* A hostile file could name one long entity in many chains; real ones spend far more than a byte on each residue. */
static Status check_size(Builder *builder, const Building *building)
{
    builder->residues += building->entity->length;
    if ((uint64_t)builder->residues <= builder->tables->text->size) return OK;
    return status_fail_at(ERR_INPUT, builder->tables->text->name, 0,
                          "%lld residues in all chains, more than the file has bytes", (long long)builder->residues);
}

static Status start_chain(Builder *builder, Building *building, bool with_atoms)
{
    Arena *arena = builder->tables->arena;
    size_t length = (size_t)building->entity->length, slots = length * ATOM37_COUNT;
    TRY(check_size(builder, building));
    building->chain = arena_alloc(arena, sizeof *building->chain);
    if (!building->chain) return no_memory(builder);
    TRY(fill_sequence(builder, building));
    if (!with_atoms) return OK;
    building->chain->positions = arena_array(arena, slots, 3 * sizeof *building->chain->positions);
    building->chain->mask = arena_array(arena, slots, sizeof *building->chain->mask);
    building->alternatives = calloc(slots, sizeof *building->alternatives);
    building->occupancy = calloc(slots, sizeof *building->occupancy);
    if (!building->chain->positions || !building->chain->mask || !building->alternatives || !building->occupancy)
        return no_memory(builder);
    return OK;
}

/* --- atoms ----------------------------------------------------------------------------------------------------- */

static uint32_t pack_name(const char *name, size_t length)
{
    uint32_t packed = 0;
    for (size_t i = 0; i < length; i++) packed = packed << 8 | (unsigned char)name[i];
    return packed;
}

static int find_slot(const Builder *builder, const AtomRow *atom)
{
    enum { SD = 18 };
    if (atom->name.length == 0 || atom->name.length > 3) return -1;
    if (cif_is(atom->name, "SE") && cif_is(atom->component, "MSE")) return SD;
    uint32_t packed = pack_name(atom->name.at, atom->name.length);
    for (int i = 0; i < ATOM37_COUNT; i++)
        if (builder->atom_name[i] == packed) return i;
    return -1;
}

/* Alternative locations are named by one letter or digit; 0 stands for any other name, which is not checked. */
static uint64_t alternative_bit(CifValue alternative)
{
    if (cif_missing(alternative)) return 1;
    unsigned char c = alternative.length == 1 ? (unsigned char)*alternative.at : 0;
    if (c >= 'A' && c <= 'Z') return (uint64_t)2 << (c - 'A');
    if (c >= 'a' && c <= 'z') return (uint64_t)2 << (26 + c - 'a');
    return c >= '0' && c <= '9' ? (uint64_t)2 << (52 + c - '0') : 0;
}

static Status place_atom(Builder *builder, Building *building, const AtomRow *atom)
{
    const MmcifTables *tables = builder->tables;
    int64_t residue = (int64_t)atom->seq - building->entity->smallest;
    if (residue < 0 || residue >= building->entity->length)
        return status_fail_at(ERR_INPUT, tables->text->name, text_line(tables->text, atom->at),
                              "label_seq_id %d, expected %d to %lld as in _entity_poly_seq", atom->seq,
                              building->entity->smallest,
                              (long long)building->entity->smallest + building->entity->length - 1);
    int slot = find_slot(builder, atom);
    if (slot < 0) return OK;
    if (building->mixed[residue] && !cif_equal(atom->component, building->code[residue])) return OK;
    size_t at = (size_t)residue * ATOM37_COUNT + (size_t)slot;
    uint64_t bit = alternative_bit(atom->alternative);
    if (building->alternatives[at] & bit)
        return status_fail_at(ERR_INPUT, tables->text->name, text_line(tables->text, atom->at),
                              "atom %.*s of residue %d is given twice", (int)atom->name.length, atom->name.at,
                              atom->seq);
    building->alternatives[at] |= bit;
    Chain *chain = building->chain;
    if (chain->mask[at] && atom->occupancy <= building->occupancy[at]) return OK;
    chain->mask[at] = 1;
    building->occupancy[at] = atom->occupancy;
    chain->positions[3 * at] = atom->x;
    chain->positions[3 * at + 1] = atom->y;
    chain->positions[3 * at + 2] = atom->z;
    return OK;
}

static Status place_atoms(Builder *builder)
{
    const MmcifTables *tables = builder->tables;
    const uint64_t total = tables->atoms.count;
    Building *building = NULL;
    for (size_t i = 0; i < total; i++) {
        const AtomRow *atom = &tables->atoms.item[i];
        if (!building || !cif_equal(building->asym->id, atom->asym)) {
            const Asym asym = {.id = atom->asym};
            const Building key = {.asym = &asym};
            building = NULL;
            if (builder->buildings)
                building = bsearch(&key, builder->building, builder->buildings, sizeof key, compare_buildings);
            if (!building) return cif_fail(tables->text, atom->at, "label_asym_id", atom->asym, "one of _struct_asym");
        }
        if (!building->entity) continue;
        if (!building->chain) {
            TRY(start_chain(builder, building, true));
            building->author = cif_missing(atom->author) ? atom->asym : atom->author;
        }
        TRY(place_atom(builder, building, atom));
    }
    return OK;
}

/* --- the structure --------------------------------------------------------------------------------------------- */

static char *lower_case(Arena *arena, CifValue value)
{
    char *copy = arena_strndup(arena, value.at, value.length);
    for (char *c = copy; c && *c; c++)
        if (*c >= 'A' && *c <= 'Z') *c = (char)(*c - 'A' + 'a');
    return copy;
}

static Status fill_header(const MmcifTables *tables, Structure *structure)
{
    const char *name = tables->text->name;
    structure->entry_id = lower_case(tables->arena, tables->entry_id);
    structure->method = tables->method ? tables->method : arena_strdup(tables->arena, "");
    if (!structure->entry_id || !structure->method) return status_fail(ERR_MEMORY, "%.400s: out of memory", name);
    memcpy(structure->release_date, tables->revision_date, sizeof structure->release_date);
    if (!*structure->release_date) {
        memcpy(structure->release_date, tables->old_revision_date, sizeof structure->release_date);
        data_warn(tables->log, name, 0, "no _pdbx_audit_revision_history: release date %s",
                  *structure->release_date ? structure->release_date : "unknown");
    }
    structure->resolution = NAN;
    for (int i = RESOLUTION_SOURCES - 1; i >= 0; i--)
        if (!isnan(tables->resolution[i])) structure->resolution = (float)tables->resolution[i];
    structure->models = tables->models;
    return OK;
}

static void free_building(Building *building)
{
    free(building->alternatives);
    free(building->occupancy);
    free((void *)building->code);
    free(building->mixed);
}

static int compare_places(const void *a, const void *b)
{
    const Building *x = a, *y = b;
    return (x->asym > y->asym) - (x->asym < y->asym);
}

static int compare_authors(const void *a, const void *b)
{
    const Building *x = *(const Building *const *)a, *y = *(const Building *const *)b;
    int order = cif_compare(x->author, y->author);
    if (order) return order;
    if (x->chain->length != y->chain->length) return x->chain->length > y->chain->length ? -1 : 1;
    return (x->asym > y->asym) - (x->asym < y->asym);
}

/* Of several protein chains with one author id the longest stays. */
static Status drop_doubles(Builder *builder)
{
    const MmcifTables *tables = builder->tables;
    Building **sorted = calloc(builder->buildings + 1, sizeof *sorted);
    size_t count = 0;
    if (!sorted) return no_memory(builder);
    for (size_t i = 0; i < builder->buildings; i++)
        if (builder->building[i].chain) sorted[count++] = &builder->building[i];
    qsort(sorted, count, sizeof *sorted, compare_authors);
    for (size_t i = 1; i < count; i++) {
        if (!cif_equal(sorted[i]->author, sorted[i - 1]->author)) continue;
        data_warn(tables->log, tables->text->name, 0,
                  "protein chain %s has the author id %.*s of a longer one: left out", sorted[i]->chain->label_id,
                  (int)(sorted[i]->author.length < 60 ? sorted[i]->author.length : 60), sorted[i]->author.at);
        sorted[i]->chain = NULL;
    }
    free(sorted);
    return OK;
}

static Status collect(Builder *builder, Structure *structure)
{
    Arena *arena = builder->tables->arena;
    TRY(drop_doubles(builder));
    if (builder->buildings) qsort(builder->building, builder->buildings, sizeof *builder->building, compare_places);
    structure->chain = arena_array(arena, builder->buildings, sizeof *structure->chain);
    if (!structure->chain) return no_memory(builder);
    for (size_t i = 0; i < builder->buildings; i++) {
        const Building *building = &builder->building[i];
        if (!building->chain) continue;
        Chain *chain = &structure->chain[structure->chain_count++];
        *chain = *building->chain;
        chain->entry_id = structure->entry_id;
        chain->method = structure->method;
        chain->resolution = structure->resolution;
        memcpy(chain->release_date, structure->release_date, sizeof chain->release_date);
        chain->chain_id = arena_strndup(arena, building->author.at, building->author.length);
        if (!chain->chain_id) return no_memory(builder);
    }
    return OK;
}

static Status finish_without_atoms(Builder *builder, bool header_only, bool *unnamed_out)
{
    const MmcifTables *tables = builder->tables;
    for (size_t i = 0; i < builder->buildings; i++) {
        Building *building = &builder->building[i];
        if (!building->entity || building->chain) continue;
        if (!header_only) {
            data_warn(tables->log, tables->text->name, 0, "protein chain %.*s has no atoms: left out",
                      (int)(building->asym->id.length < 60 ? building->asym->id.length : 60), building->asym->id.at);
            continue;
        }
        if (!building->author.at) *unnamed_out = true;
        if (*unnamed_out) return OK;
        TRY(start_chain(builder, building, false));
    }
    return OK;
}

Status mmcif_chains_build(MmcifTables *tables, bool header_only, Structure *structure, bool *unnamed_out)
{
    Builder builder = {.tables = tables};
    const ResidueTables *residues = residue_tables();
    for (int i = 0; i < ATOM37_COUNT; i++)
        builder.atom_name[i] = pack_name(residues->atom37_name[i], strlen(residues->atom37_name[i]));
    *unnamed_out = false;
    Status status = fill_header(tables, structure);
    if (status == OK) status = find_entities(&builder);
    if (status == OK) status = start_buildings(&builder);
    if (status == OK) status = place_atoms(&builder);
    if (status == OK) status = finish_without_atoms(&builder, header_only, unnamed_out);
    if (status == OK && !*unnamed_out) status = collect(&builder, structure);
    for (size_t i = 0; i < builder.buildings; i++) free_building(&builder.building[i]);
    free(builder.building);
    free(builder.entity);
    return status;
}
