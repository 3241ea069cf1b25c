# CSV tables of residues -> C (part=tables: the ResidueTables of data/residue.h; part=lists: bonds and monomer codes).
# Numbers are copied as text, so the compiler alone rounds them. POSIX awk; called by generate.sh.
BEGIN { FS = "," }
FNR == 1 { next }
{ sub(/\r$/, "") }

FILENAME == "restypes.csv" && $1 <= 20 { letter[$1] = $2; name[$1] = $3; index_of[$3] = $1; next }
FILENAME == "atom37.csv" { atom37[$1] = $2; atom37_of[$2] = $1; next }
FILENAME == "atom14.csv" {
    r = index_of[$1]
    for (a = 0; a < 14; a++) {
        atom14[r, a] = $(a + 2)
        if ($(a + 2) != "") atom14_of[r, $(a + 2)] = a
    }
    next
}
FILENAME == "rigid_group_atoms.csv" {
    r = index_of[$1]
    group[r, $2] = $3
    position[r, $2] = real($4) ", " real($5) ", " real($6)
    next
}
FILENAME == "rigid_group_default_frames.csv" {
    frame = ""
    for (row = 0; row < 3; row++) {
        frame = frame "{"
        for (c = 0; c < 4; c++) frame = frame real($(3 + 4 * row + c)) (c < 3 ? ", " : "}, ")
        for (c = 0; c < 4; c++) if ($(3 + 4 * row + c) + 0 != 0) present[index_of[$1], $2] = 1
    }
    frames[index_of[$1], $2] = frame "{0, 0, 0, 1}"
    next
}
FILENAME == "chi_angles.csv" {
    r = index_of[$1]
    for (a = 0; a < 4; a++) chi[r, $2 - 1, a] = $(3 + a)
    periodic[r, $2 - 1] = $7
    next
}
FILENAME == "ambiguous_atoms.csv" { r = index_of[$1]; partner[r, $2] = $3; partner[r, $3] = $2; next }
FILENAME == "van_der_waals.csv" { radius[$1] = $2; next }
FILENAME == "between_residue.csv" { between[FNR - 2, 0] = $(NF - 1); between[FNR - 2, 1] = $NF; next }
FILENAME == "msa_alphabet.csv" { hhblits[$1] = $2; model[$2] = $3; next }
FILENAME == "bond_lengths.csv" || FILENAME == "virtual_bonds.csv" {
    r = index_of[$1]
    if (!((r, $2) in atom14_of) || !((r, $3) in atom14_of)) die(FILENAME " line " FNR ": unknown atom")
    bonds[bond_count++] = "{" r ", " atom14_of[r, $2] ", " atom14_of[r, $3] ", " $4 ", " $5 "}"
    next
}
FILENAME == "three_to_one.csv" {
    if (length($1) != 3 || length($2) != 1) die(FILENAME " line " FNR ": not three letters and one")
    if (code_count && codes[code_count - 1] >= $1 $2) die(FILENAME " line " FNR ": not sorted")
    codes[code_count++] = $1 $2
    next
}

function die(text) { print text | "cat 1>&2"; failed = 1; exit 1 }
function real(text) { return (text ~ /[.e]/ ? text : text ".0") "f" }

# One table with a line per residue, or per three residues where rows are short.
function open_table(field) { print "    ." field " = {"; pending = "" }
function close_table() { if (pending != "") print "       " pending; print "    }," }
function row_of(r, count, text) {
    pending = pending " [" r "] = {" text "},"
    if (count > 8 || length(text) > 40 || r % 3 == 2) { print "       " pending; pending = "" }
}

function atom_row(r, kind, what,    a, atom, text, cell) {
    text = ""
    for (a = 0; a < kind; a++) {
        atom = kind == 14 ? atom14[r, a] : atom37[a]
        if (kind == 37 && !((r, atom) in atom14_of)) atom = ""
        if (what == "name") cell = "\"" atom "\""
        else if (what == "other") cell = atom == "" ? 0 : kind == 14 ? atom37_of[atom] : atom14_of[r, atom]
        else if (what == "mask") cell = atom == "" ? 0 : 1
        else if (what == "group") cell = atom == "" ? 0 : group[r, atom]
        else if (what == "position") cell = atom == "" ? "{0}" : "{" position[r, atom] "}"
        else if (what == "swap") cell = (r, atom) in partner ? atom14_of[r, partner[r, atom]] : a
        else if (what == "ambiguous") cell = (r, atom) in partner ? 1 : 0
        else if (what == "radius") cell = atom == "" ? 0 : radius[substr(atom, 1, 1)] "f"
        text = text (a ? ", " : "") cell
    }
    return text
}
function atom_table(field, kind, what,    r) {
    open_table(field)
    for (r = 0; r < 21; r++) row_of(r, kind, atom_row(r, kind, what))
    close_table()
}
function chi_row(r, what,    c, a, text, cell) {
    text = ""
    for (c = 0; c < 4; c++) {
        if (what == "mask") cell = (r, c) in periodic ? 1 : 0
        else if (what == "periodic") cell = (r, c) in periodic ? periodic[r, c] : 0
        else {
            cell = "{"
            for (a = 0; a < 4; a++)
                cell = cell (a ? ", " : "") (!((r, c) in periodic) ? 0 : what == 37 ? atom37_of[chi[r, c, a]] \
                                                                                    : atom14_of[r, chi[r, c, a]])
            cell = cell "}"
        }
        text = text (c ? ", " : "") cell
    }
    return text
}
function chi_table(field, what,    r) {
    open_table(field)
    for (r = 0; r < 21; r++) row_of(r, 4, chi_row(r, what))
    close_table()
}
# Groups 0 and 3 exist for UNK too (every residue has a backbone); chi group k + 4 is built on atoms 2 to 4 of chi k.
function group_tables(    r, g, c, a, text) {
    open_table("group_exists")
    for (r = 0; r < 21; r++) {
        text = ""
        for (g = 0; g < 8; g++) text = text (g ? ", " : "") (g == 0 || g == 3 || (r, g - 4) in periodic ? 1 : 0)
        row_of(r, 8, text)
    }
    close_table()
    open_table("group_base_atom37")
    for (r = 0; r < 21; r++) {
        text = ""
        for (g = 0; g < 8; g++) {
            text = text (g ? ", " : "")
            if (g == 0) text = text "{" atom37_of["C"] ", " atom37_of["CA"] ", " atom37_of["N"] "}"
            else if (g == 3) text = text "{" atom37_of["CA"] ", " atom37_of["C"] ", " atom37_of["O"] "}"
            else if ((r, g - 4) in periodic) {
                for (a = 1; a < 4; a++) text = text (a == 1 ? "{" : ", ") atom37_of[chi[r, g - 4, a]]
                text = text "}"
            } else text = text "{0}"
        }
        row_of(r, 8, text)
    }
    close_table()
    open_table("default_frames")
    text = ""
    for (r = 0; r < 21; r++)
        for (g = 0; g < 8; g++) if ((r, g) in present) {
            text = text (text == "" ? "        " : " ") "[" r "][" g "] = {" frames[r, g] "},"
            if (++c % 2 == 0) { print text; text = "" }
        }
    if (text != "") print text
    close_table()
}
function flat_list(field, count, quote,    i, text) {
    text = ""
    for (i = 0; i < count; i++)
        text = text (i ? ", " : "") (field == "restype_name" ? "\"" name[i] "\"" : field == "atom37_name" ? \
            "\"" atom37[i] "\"" : field == "hhblits_to_model" ? model[i] : radius[substr(atom37[i], 1, 1)])
    print "    ." field " = {" text "},"
}
# Indexed by the character; letters count in either case.
function alphabet(    i, l, text) {
    print "    .letter_to_hhblits = {"
    for (i = 0; i < 256; i++) {
        l = i > 32 && i < 127 ? toupper(sprintf("%c", i)) : ""
        text = (i % 16 ? text ", " : "") (l in hhblits ? hhblits[l] : 255)
        if (i % 16 == 15) print "        " text ","
    }
    print "    },"
}
function write_tables(    i, letters) {
    print "#include \"data/residue.h\"\n"
    print "static const ResidueTables tables = {"
    for (i = 0; i < 21; i++) letters = letters letter[i]
    print "    .restype_letter = \"" letters "\","
    flat_list("restype_name", 21)
    flat_list("atom37_name", 37)
    atom_table("atom14_name", 14, "name")
    atom_table("atom14_to_atom37", 14, "other")
    atom_table("atom37_to_atom14", 37, "other")
    atom_table("atom14_mask", 14, "mask")
    atom_table("atom37_mask", 37, "mask")
    atom_table("atom14_group", 14, "group")
    atom_table("atom37_group", 37, "group")
    atom_table("atom14_group_position", 14, "position")
    atom_table("atom37_group_position", 37, "position")
    group_tables()
    chi_table("chi_atom37", 37)
    chi_table("chi_atom14", 14)
    chi_table("chi_mask", "mask")
    chi_table("chi_pi_periodic", "periodic")
    atom_table("atom14_swap", 14, "swap")
    atom_table("atom14_ambiguous", 14, "ambiguous")
    flat_list("atom37_vdw_radius", 37)
    atom_table("atom14_vdw_radius", 14, "radius")
    print "    .between_c_n_length = {" between[0, 0] ", " between[1, 0] "},"
    print "    .between_c_n_length_std = {" between[0, 1] ", " between[1, 1] "},"
    print "    .between_cos_c_n_ca = {" between[2, 0] ", " between[2, 1] "},"
    print "    .between_cos_ca_c_n = {" between[3, 0] ", " between[3, 1] "},"
    alphabet()
    flat_list("hhblits_to_model", 22)
    print "};\n"
    print "const ResidueTables *residue_tables(void)\n{\n    return &tables;\n}"
}
function write_lists(    i) {
    print "#include \"data/residue_lists.h\"\n"
    print "const ResidueBond residue_bonds[] = {"
    for (i = 0; i < bond_count; i++) printf "%s%s,%s", i % 3 ? " " : "    ", bonds[i], i % 3 == 2 || i == bond_count - 1 ? "\n" : ""
    print "};\nconst int residue_bond_count = " bond_count ";\n"
    print "const char residue_monomer_codes[] ="
    for (i = 0; i < code_count; i++)
        printf "%s%s%s", i % 24 ? "" : "    \"", codes[i], i % 24 == 23 || i == code_count - 1 ? (i == code_count - 1 ? "\";\n" : "\"\n") : ""
    print "const int residue_monomer_count = " code_count ";"
}
END {
    if (failed) exit 1
    print "/* Generated by data/residue/generate.sh from data/residue; change the tables there. */"
    print "/* clang-format off */"
    if (part == "tables") write_tables()
    else write_lists()
}
