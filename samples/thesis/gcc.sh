# A compiler with optimization on one large file: memory grows function by function.
awk 'BEGIN {
    print "#include <stdlib.h>\nstruct node { struct node *left, *right; long key; double weight; };"
    for (f = 0; f < 250; f++) {
        printf "double work%d(struct node *n, int *a, int len) {\n", f
        printf "    double sum = 0; long low = %d;\n", f * 7 % 100
        printf "    for (int i = 0; i < len; i++) { a[i] = a[i] * %d + (i ^ %d); sum += a[i] / (1.0 + i); }\n", f % 17 + 1, f
        printf "    while (n) { if (n->key > low) { sum += n->weight; n = n->left; } else n = n->right; }\n"
        printf "    switch (len %% 7) {"
        for (c = 0; c < 6; c++) printf " case %d: sum *= %d.5; low += a[%d]; break;", c, c + f % 5, c
        printf " default: sum -= low; }\n    return sum > %d ? sum : ", f
        if (f) printf "work%d(n, a, len / 2);\n}\n", f - 1; else print "0;\n}"
    }
}' >large.c
nestwalk-mark 3
gcc -O2 -c large.c
nestwalk-mark 4
