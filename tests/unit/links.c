/* Linked with the whole of one layer, and what that one needs of the layers below it: what calls upward does not link.
 */
int main(void)
{
    return 0;
}
