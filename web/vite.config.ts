import { fileURLToPath } from 'node:url';
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

// Where `npm run dev` finds a server; only for working on the page.
const server = process.env.REJOIN_SERVER ?? 'http://127.0.0.1:7171';

export default defineConfig({
  plugins: [svelte()],
  // The client is built from its sources; only those who use it without this page need its own build.
  resolve: {
    alias: ['log', 'outbox', 'tabs', ''].map((part) => ({
      find: new RegExp(`^@rejoin/client${part && `/${part}`}$`),
      replacement: fileURLToPath(new URL(`sdk/src/${part || 'index'}.ts`, import.meta.url)),
    })),
  },
  build: {
    target: 'es2022',
    // Browsers that know light-dark() themselves; an emulation by the build is easy to get wrong.
    cssTarget: ['chrome123', 'firefox120', 'safari17.5'],
    // Assets as data URLs would need `data:` in the policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { '/api': { target: server, ws: true } } },
  test: { include: ['sdk/tests/**/*.test.ts', 'tests/**/*.test.{ts,mjs}'], environment: 'node' },
});
