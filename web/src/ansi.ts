// Terminal colours to HTML with class names only: the page's policy allows no inline style. Escapes everything else.

import { AnsiUp } from 'ansi_up';

export class Painter {
  private readonly ansi = new AnsiUp();

  constructor() {
    this.ansi.use_classes = true;
    // Links in output stay text: what a program prints must not become something to click.
    this.ansi.url_allowlist = {};
  }

  /** Colours carry over from one piece to the next, as they do in a terminal. */
  paint(text: string): string {
    // The 256 and true colours have no class; their inline style would be refused, so it is left out here.
    return this.ansi.ansi_to_html(text).replace(/ style="[^"]*"/g, '');
  }
}
