"""The small vocabulary of the generated tasks: short English nouns and first names."""

NOUNS = (
    "apple arch bank bell bird boat book bridge cake card chair clock cloud coat coin corn "
    "cup desk door drum duck farm field fire fish flag forest fork garden gate glass gold "
    "hand hill horse house island key king lake lamp leaf lion map milk moon mouse nail "
    "nest ocean paper pearl pen piano rain ring river road rock rose sail salt sand ship "
    "snow star stone sugar table tower train tree wall water wheel wind window wolf wood yarn"
).split()

# To GPT-2's pre-tokenizer a quote before s, t, m or d (and before "re") is an English contraction:
# "'tree'" at the start of a line becomes "'t", "ree". Quoted words avoid that, so that a string is
# made of the same tokens wherever it stands.
QUOTED = [word for word in NOUNS if word[0] not in "stmd" and not word.startswith("re")]

NAMES = (
    "Ada Amir Anna Boris Carla Chen Clara David Diego Elena Emil Erik Fatima Felix Greta "
    "Hana Hugo Igor Ines Ivan Jonas Julia Karim Lara Lena Luca Maria Marta Milan Mira Nadia "
    "Nina Noah Olga Omar Oscar Paula Pedro Rosa Samir Sara Sofia Tara Theo Vera Viktor Yuki Zoe"
).split()
