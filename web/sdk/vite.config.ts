import { defineConfig } from 'vite';

// Files without comments or long names, for those who use the client without a bundler of their own. What only some want
// is in files of its own beside it.
export default defineConfig({
  build: {
    target: 'es2022',
    lib: { entry: ['index', 'log', 'outbox', 'tabs'].map((name) => `src/${name}.ts`), formats: ['es'] },
    rolldownOptions: {
      external: ['./index.js'],
      // As a library Vite would leave the white space in.
      output: { minify: true, comments: false },
    },
  },
});
