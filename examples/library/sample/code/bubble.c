/* Sorts what it is given on the command line, in the slowest polite way. */
#include <stdio.h>
#include <string.h>

int main(int count, char **words)
{
    for (int end = count - 1; end > 1; end--)
        for (int i = 1; i < end; i++)
            if (strcmp(words[i], words[i + 1]) > 0) {
                char *swap = words[i];
                words[i] = words[i + 1];
                words[i + 1] = swap;
            }
    for (int i = 1; i < count; i++)
        puts(words[i]);
    return 0;
}
